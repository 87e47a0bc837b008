"""/metrics: every figure against requests whose tokens are known; several API processes answer with one sum."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire.reference.control.errors import ConfigError
from quire.server.metrics import COUNTERS, HISTOGRAMS, MULTIPROC_DIR
from tests.conftest import ROOT
from tests.reference.ghost import GhostRunner, ghost_engine
from tests.server.conftest import LiveServer, serve
from tests.server.toy_app import every_metric, toy_app

Samples = dict[tuple[str, frozenset], float]


def parsed(text: str) -> Samples:
    """Every sample by name (without the prefix) and labels (without the model's name)."""
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels.pop("model_name", "pocket") == "pocket"
            samples[sample.name.removeprefix("quire:"), frozenset(sample.labels.items())] = sample.value
    return samples


def scrape(live: LiveServer) -> Samples:
    with live.http() as client:
        response = client.get("/metrics")
        assert response.status_code == 200 and response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return parsed(response.text)


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def live():
    with serve(engine=ghost_engine(GhostRunner())) as server:
        yield server


def complete(live: LiveServer, **body):
    with live.http() as client:
        return client.post("/v1/completions", json={"model": "pocket", "prompt": [1, 2, 3, 4, 5], **body})


def test_each_figure_of_a_few_known_requests(live: LiveServer) -> None:
    """Two prompts of 5 tokens, answered with 8 tokens, one by two completions: 3 texts and 24 tokens in all."""
    assert complete(live, max_tokens=8, ignore_eos=True).status_code == 200
    assert complete(live, max_tokens=8, ignore_eos=True, n=2, stream=True).status_code == 200
    now = scrape(live)
    assert value(now, "prompt_tokens_total") == 10
    assert value(now, "prompt_tokens_cached_total") == 4  # a block of the second prompt
    assert value(now, "generation_tokens_total") == 24
    assert value(now, "request_success_total", finished_reason="length") == 3
    assert value(now, "inter_token_latency_seconds_count") == 21
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time",
                 "request_decode_time", "request_inference_time"):  # fmt: skip
        assert value(now, f"{name}_seconds_count") == 2
    assert value(now, "request_prompt_tokens_sum") == 10 and value(now, "request_generation_tokens_sum") == 24
    assert value(now, "request_params_n_sum") == 3 and value(now, "request_params_max_tokens_sum") == 16
    assert value(now, "prefix_cache_queries_total") == 10 and value(now, "prefix_cache_hits_total") == 4
    assert value(now, "iteration_tokens_total_sum") == (5 + 7) + (
        1 + 1 + 14
    )  # prompt, its rest for each completion, decodes
    assert value(now, "num_requests_running") == value(now, "num_requests_waiting") == 0
    assert value(now, "engine_up") == 1
    assert value(now, "cache_config_info", num_blocks="64", block_size="4") == 1


def test_what_shadow_verification_counts(live: LiveServer) -> None:
    live.engine.verified = SimpleNamespace(steps=7, divergences=2)
    complete(live, max_tokens=2)
    now = scrape(live)
    assert (value(now, "verify_steps_total"), value(now, "verify_divergences_total")) == (7, 2)


def test_the_parts_of_a_requests_time_add_up(live: LiveServer) -> None:
    complete(live, max_tokens=8, ignore_eos=True)
    now = scrape(live)
    queue, prefill, decode, inference, whole = (
        value(now, f"{name}_seconds_sum")
        for name in ("request_queue_time", "request_prefill_time", "request_decode_time", "request_inference_time",
                     "e2e_request_latency")
    )  # fmt: skip
    assert min(queue, prefill, decode) > 0
    assert inference == pytest.approx(prefill + decode) and whole == pytest.approx(queue + inference)
    assert value(now, "time_to_first_token_seconds_sum") == pytest.approx(queue + prefill)
    assert value(now, "inter_token_latency_seconds_sum") == pytest.approx(decode)


def test_errors_are_counted_by_code_and_addresses_that_do_not_exist_as_one(live: LiveServer) -> None:
    with live.http() as client:
        client.get("/nowhere/1")
        client.get("/nowhere/2")
    complete(live, nonsense=1)
    now = scrape(live)
    assert value(now, "http_requests_total", method="GET", path="none", status="404") == 2
    assert value(now, "http_requests_total", method="POST", path="/v1/completions", status="400") == 1
    assert value(now, "http_request_duration_seconds_count", method="POST", path="/v1/completions") == 1
    assert value(now, "http_errors_total", code="unknown_parameter") == 1
    assert value(now, "prompt_tokens_total") == 0


def test_a_client_that_leaves_counts_as_an_abort(live: LiveServer) -> None:
    step, steps = live.engine.step, itertools.count()
    live.engine.step = lambda: step() if next(steps) < 5 else []  # then there are no more tokens
    with live.http() as client, client.stream(
        "POST", "/v1/completions", json={"prompt": [1], "max_tokens": 60, "ignore_eos": True, "stream": True, "n": 2}
    ) as response:  # fmt: skip
        next(response.iter_lines())
    while not (count := value(scrape(live), "request_success_total", finished_reason="abort")):
        pass  # the server has yet to notice; the test's time limit is the deadline
    assert count == 2


def test_requests_lost_with_the_engine_count_as_errors() -> None:
    with serve(engine=ghost_engine(GhostRunner(fail_at=3))) as live:
        assert complete(live, max_tokens=50, ignore_eos=True).status_code == 503
        now = scrape(live)
        assert value(now, "request_success_total", finished_reason="error") == 1
        assert value(now, "engine_up") == 0
        assert value(now, "http_errors_total", code="engine_unavailable") == 1


# Says when it has observed its part, and answers a scrape for every line it is given.
PROCESS = """
import sys
from quire.reference.output_processor import Processed
from quire.reference.outputs import RequestMetrics
from quire.server.context import RequestRecord
from tests.server.toy_app import toy_app
metrics = toy_app().state.quire.metrics
metrics.observe(Processed(began=[RequestMetrics(1.0, 5, 1.25, 1.5)], gaps=[0.5, 0.25], num_tokens=3))
metrics.http_request(RequestRecord("1", "GET", "/x", status=200), "/x")
for line in sys.stdin:
    print(metrics.exposition().decode(), end="# EOF\\n", flush=True)
"""


class ApiProcess:
    """An API process that has served one request, and its answers to scrapes."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROCESS], cwd=ROOT, env=os.environ | {MULTIPROC_DIR: str(folder)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def scrape(self) -> Samples:
        assert self.process.stdin and self.process.stdout
        print(file=self.process.stdin, flush=True)
        answer = list(itertools.takewhile(lambda line: line != "# EOF\n", self.process.stdout))
        assert answer, "the process has failed"
        return parsed("".join(answer))

    def end(self) -> None:
        self.process.communicate(timeout=60)


def test_with_several_api_processes_any_of_them_answers_for_all(tmp_path: Path) -> None:
    """Each serves one request. The figures of a process that has ended stay, as counters must not fall."""
    first, second = ApiProcess(tmp_path), ApiProcess(tmp_path)
    first.scrape()  # now it has served its request, and the next answer of the second has everything
    answers = [second.scrape(), first.scrape()]
    second.end()
    answers.append(first.scrape())
    first.end()
    for now in answers:
        assert value(now, "generation_tokens_total") == 6
        assert value(now, "inter_token_latency_seconds_count") == 4
        assert value(now, "inter_token_latency_seconds_bucket", le="0.3") == 2
        assert value(now, "inter_token_latency_seconds_sum") == 1.5
        assert value(now, "time_to_first_token_seconds_sum") == 1.0
        assert value(now, "http_requests_total", method="GET", path="/x", status="200") == 2
        assert now["num_requests_running", frozenset()] == 0 and now["engine_up", frozenset()] == 0  # each once
        assert not any(name.startswith("process_") for name, _ in now)


def test_their_folder_must_be_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(MULTIPROC_DIR, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=MULTIPROC_DIR):
        toy_app()


def test_the_documentation_has_every_metric_with_its_type_and_labels() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(quire:\w+)` \| (\w+) \| (.*?) \|", text, re.M)
    told = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    real = {}
    for family in every_metric():
        if family.name.startswith("quire:"):
            name = family.name + "_total" * (family.type == "counter")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            real[name] = (family.type, labels)
    assert told == real
    assert len(told) == len(rows) > len(HISTOGRAMS) + len(COUNTERS)
