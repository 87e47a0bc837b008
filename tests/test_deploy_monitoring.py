"""deploy/, Prometheus and Grafana: every query asks for metrics and labels that the server has.

A misspelt one is no error to either program: the panel stays empty, the alert silent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser

from tests.server.toy_app import every_metric
from tests.test_deploy import DEPLOY, PORT, paths, read_yaml, seconds


def alerts() -> list[dict[str, Any]]:
    (group,) = read_yaml("prometheus", "alerts.yml")["groups"]
    return group["rules"]


def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana" / "dashboards" / "quire.json").read_text("utf-8"))


def queries() -> Iterator[tuple[str, set[str]]]:
    """Every PromQL expression, and the labels that the text beside it names."""
    for alert in alerts():
        yield alert["expr"], set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            shown = re.findall(r"{{(\w+)}}", target["legendFormat"])
            yield target["expr"].replace("$__rate_interval", "1m"), set(shown)


def inside(expression: Any) -> Iterator[Any]:
    """A PromQL expression and all expressions that it is made of."""
    yield expression
    parts = [getattr(expression, name, None) for name in ("lhs", "rhs", "expr", "vector_selector")]
    for part in (*parts, *getattr(expression, "args", ())):
        if part is not None:
            yield from inside(part)


def test_queries_name_metrics_and_labels_that_exist() -> None:
    from_prometheus = {"job", "instance"}
    samples = {sample.name: {*sample.labels, *from_prometheus} for m in every_metric() for sample in m.samples}
    samples["up"] = from_prometheus
    asked = set()
    for text, shown in queries():
        parts = list(inside(promql_parser.parse(text)))
        selectors = [part for part in parts if isinstance(part, promql_parser.VectorSelector)]
        aggregations = [part for part in parts if isinstance(part, promql_parser.AggregateExpr)]
        assert selectors, text
        for selector in selectors:
            assert selector.name in samples, f"{selector.name} in {text}"
            assert {m.name for m in selector.matchers.matchers} <= samples[selector.name], text
        common = set.intersection(*(samples[selector.name] for selector in selectors))
        kept = {label for a in aggregations if a.modifier for label in a.modifier.labels}
        assert kept <= common, text
        assert shown <= (kept if aggregations else common), text
        asked |= {selector.name for selector in selectors}
    assert len(asked) > 20


def test_alerts_say_how_bad_it_is_and_what_to_look_at() -> None:
    assert len({alert["alert"] for alert in alerts()}) == len(alerts())
    for alert in alerts():
        assert alert["labels"]["severity"] in ("warning", "critical") and alert["annotations"]["summary"]
        assert seconds(alert["for"]) >= 60


def test_prometheus_scrapes_the_server_of_compose() -> None:
    config = read_yaml("prometheus", "prometheus.yml")
    assert all((DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"])
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"quire:{PORT}"]}]
    assert job.get("metrics_path", "/metrics") in paths()
    jobs = {m.value for text, _ in queries() for part in inside(promql_parser.parse(text))
            for m in getattr(getattr(part, "matchers", None), "matchers", ()) if m.name == "job"}  # fmt: skip
    assert jobs == {job["job_name"]}


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    cells = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells, f"{panel['title']} lies on another panel"
        cells |= own
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_grafana_finds_the_dashboard_and_the_source_of_its_data() -> None:
    (source,) = read_yaml("grafana", "provisioning", "datasources", "prometheus.yaml")["datasources"]
    text = (DEPLOY / "grafana" / "dashboards" / "quire.json").read_text("utf-8")
    assert set(re.findall(r'"type": "prometheus",\s+"uid": "(\w+)"', text)) == {source["uid"]}
    services = read_yaml("docker-compose.yaml")["services"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
    (provider,) = read_yaml("grafana", "provisioning", "dashboards", "quire.yaml")["providers"]
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
