"""deploy/, containers and proxies: what their programs accept, with options, ports and paths that are the code's.

No container, cluster or proxy runs here. Docker's, Kubernetes' and nginx' formats are checked by other people's parsers
and schemas; what is left are a few questions that only this project can answer. For Prometheus and Grafana see
test_deploy_monitoring.py.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import crossplane
import jsonpatch
import kubernetes_validate
import pytest
import yaml

from quire.cli import serve as cli
from quire.server.config import ServerConfig
from tests.conftest import LINKED, ROOT
from tests.server.toy_app import toy_app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEPLOY = ROOT / "deploy"
PORT = ServerConfig().port
OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes
PROXIES = [DEPLOY / "proxy" / "nginx.conf", DEPLOY / "proxy" / "haproxy.cfg"]


def read_yaml(*path: str) -> Any:
    return yaml.safe_load(DEPLOY.joinpath(*path).read_text("utf-8"))


def seconds(text: str) -> float:
    """The length of time that "45s", "2m" or "1h" stands for."""
    return float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def paths() -> set[str]:
    return set(toy_app().openapi()["paths"])


# -------------------------------------------------------------------------------------------------- command lines


def compose() -> dict[str, Any]:
    return read_yaml("docker-compose.yaml")["services"]["quire"]


def container() -> dict[str, Any]:
    return deployment()["spec"]["template"]["spec"]["containers"][0]


def entrypoint() -> list[str]:
    (line,) = re.findall(r"^ENTRYPOINT (.*)$", (DEPLOY / "Dockerfile").read_text("utf-8"), re.M)
    return json.loads(line)


def command_lines() -> dict[str, list[str]]:
    """Every ``quire serve`` in the folder, with what the image's entry point adds."""
    return {
        name: entrypoint() + arguments
        for name, arguments in {
            "Dockerfile": [],
            "compose": compose()["command"],
            "compose with a GPU": read_yaml("docker-compose.gpu.yaml")["services"]["quire"]["command"],
            "Kubernetes": container()["args"],
            "Kubernetes with a GPU": with_gpu()["spec"]["template"]["spec"]["containers"][0]["args"],
        }.items()
    }


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    return parser


def server(name: str) -> ServerConfig:
    """What a command line comes to."""
    return cli.settings(parser().parse_args(command_lines()[name][2:]))[1]


def test_command_lines_are_valid_and_listen_where_everything_else_expects_it() -> None:
    for name, command in command_lines().items():
        assert command[:2] == ["quire", "serve"], name
        assert (server(name).host, server(name).port) == ("0.0.0.0", PORT), name


def test_options_in_the_text_exist() -> None:
    named = set(re.findall(r"`(--[\w-]+)`", (DEPLOY / "README.md").read_text("utf-8")))
    assert named and named <= set(re.findall(r"--[\w-]+", parser().format_help()))


def test_who_stops_the_server_waits_until_it_has_drained() -> None:
    """Else running requests are cut off. The supervisor gives its processes up to 10 s beyond --shutdown-timeout."""
    for name in ("compose", "compose with a GPU"):
        assert seconds(compose()["stop_grace_period"]) > server(name).shutdown_timeout + 10
    pause = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = deployment()["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > pause + server("Kubernetes").shutdown_timeout + 10


# ------------------------------------------------------------------------------------------------------- Docker


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="hadolint has no package for Windows")
def test_the_dockerfile_passes_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    run(str(hadolint), "--failure-threshold", "warning", str(DEPLOY / "Dockerfile"))


def test_the_image_has_both_targets_and_no_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    stages = re.findall(r"^FROM (\S+) AS (\w+)$", text, re.M)
    assert stages[-2:] == [("run", "cuda"), ("run", "cpu")]  # the last one is what is built if none is named
    user, *others = re.findall(r"^USER (\w+)$", text, re.M)
    assert user.isdigit() and int(user) > 0 and f"--uid {user}" in text
    assert not others or others[-1] == user  # root installs, and does not run
    assert int(user) == deployment()["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    (probe,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", text)
    assert int(probe[0]) == PORT and probe[1] in paths()


def test_the_image_is_made_of_what_the_package_needs() -> None:
    """The ranges of torch agree, the extras exist, and the files that the package is built from are let through."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    torch, package = re.findall(r'pip install "(.+)"', text)
    assert torch in project["dependencies"]
    (extras,) = re.findall(r"\[(.+)\]", package)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    let_through = {line[1:] for line in lines if line.startswith("!")}
    folders = {name for name in ("quire", *LINKED) if (ROOT / name).is_dir()}
    assert let_through == {*folders, "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"}


@pytest.mark.parametrize("name", ["docker-compose.yaml", "docker-compose.gpu.yaml"])
def test_compose_files_match_the_schema(name: str) -> None:
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(DEPLOY / name))


def test_compose_builds_targets_of_the_dockerfile_and_mounts_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    for file in ("docker-compose.yaml", "docker-compose.gpu.yaml"):
        assert f" AS {read_yaml(file)['services']['quire']['build']['target']}\n" in text
    build = compose()["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    assert compose()["ports"] == [f"{PORT}:{PORT}"]
    document = read_yaml("docker-compose.yaml")
    for service in document["services"].values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert (DEPLOY / source).is_dir() if source.startswith(".") else source in document["volumes"]


# --------------------------------------------------------------------------------------------------- Kubernetes


def manifests() -> dict[str, Any]:
    """What ``kubectl apply -k deploy/kubernetes/base`` sends, by kind."""
    names = read_yaml("kubernetes", "base", "kustomization.yaml")["resources"]
    return {manifest["kind"]: manifest for manifest in (read_yaml("kubernetes", "base", name) for name in names)}


def deployment() -> dict[str, Any]:
    return manifests()["Deployment"]


def with_gpu() -> dict[str, Any]:
    """The deployment of the overlay."""
    overlay = read_yaml("kubernetes", "gpu", "kustomization.yaml")
    (patch,) = overlay["patches"]
    assert overlay["resources"] == ["../base"]
    assert patch["target"] == {"kind": "Deployment", "name": deployment()["metadata"]["name"]}
    return jsonpatch.apply_patch(deployment(), read_yaml("kubernetes", "gpu", patch["path"]))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_manifests_match_kubernetes_schemas(version: str) -> None:
    assert manifests().keys() == {"Deployment", "Service", "PodDisruptionBudget"}
    for manifest in (*manifests().values(), with_gpu()):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_manifests_fit_each_other() -> None:
    labels = deployment()["spec"]["template"]["metadata"]["labels"]
    assert deployment()["spec"]["selector"]["matchLabels"] == labels
    assert manifests()["Service"]["spec"]["selector"] == labels
    assert manifests()["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"http": PORT}
    assert [port["targetPort"] for port in manifests()["Service"]["spec"]["ports"]] == list(ports)
    pod = deployment()["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert mounts.keys() == volumes
    assert str(server("Kubernetes").api_key_file).startswith(mounts["keys"] + "/")
    annotations = deployment()["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(PORT) and annotations["prometheus.io/path"] in paths()


def test_probes_ask_what_the_server_answers() -> None:
    probes = {name: container()[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    for probe in probes.values():
        assert probe["httpGet"]["path"] in paths() and probe["httpGet"]["port"] == "http"
    patience = {name: probe["periodSeconds"] * probe["failureThreshold"] for name, probe in probes.items()}
    assert patience["readiness"] < patience["liveness"]  # first it gets no more requests, then it is given up
    assert patience["startup"] >= 600  # loading a large model takes minutes


def test_the_overlay_has_a_gpu_and_the_image_for_it() -> None:
    assert with_gpu()["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    (image,) = read_yaml("kubernetes", "gpu", "kustomization.yaml")["images"]
    assert container()["image"].partition(":")[0] == image["name"]
    assert f"{image['name']}:{image['newTag']}" == read_yaml("docker-compose.gpu.yaml")["services"]["quire"]["image"]


# ------------------------------------------------------------------------------------------------------- proxies


def nginx() -> dict[str, list[list[str]]]:
    """The directives of nginx.conf, wherever they stand: name -> arguments of each."""
    parsed = crossplane.parse(str(PROXIES[0]), strict=True)
    # The entries of a map have names of one's own; crossplane takes them for directives.
    errors = [e["error"] for e in parsed["errors"] if not re.match('unknown directive "(default)?" in', e["error"])]
    assert not errors
    found: dict[str, list[list[str]]] = {}

    def collect(block: list[dict[str, Any]]) -> None:
        for directive in block:
            found.setdefault(directive["directive"], []).append(directive["args"])
            collect(directive.get("block", []))

    collect(parsed["config"][0]["parsed"])
    return found


def haproxy() -> dict[str, str]:
    """The lines of haproxy.cfg: first word, or first two of ``timeout`` and ``option`` -> the rest."""
    lines = (line.split() for line in PROXIES[1].read_text("utf-8").splitlines())
    found = {}
    for words in lines:
        if words and not words[0].startswith("#"):
            length = 2 if words[0] in ("timeout", "option") else 1
            found[" ".join(words[:length])] = " ".join(words[length:])
    return found


def test_nginx_lets_streams_through_and_waits_for_long_prompts() -> None:
    found = nginx()
    assert found["proxy_buffering"] == [["off"]] and found["proxy_http_version"] == [["1.1"]]
    assert seconds(found["proxy_read_timeout"][0][0]) >= 600
    assert found["client_max_body_size"] == [[f"{ServerConfig().max_body_size >> 20}m"]]


def test_nginx_tries_another_server_only_before_there_is_an_answer() -> None:
    found = nginx()
    assert set(found["proxy_next_upstream"][0]) == {"error", "http_503", "non_idempotent"}  # above all no timeout
    assert found["proxy_next_upstream_tries"] == [["2"]] and found["least_conn"] == [[]]
    assert len([args for args in found["server"] if args and args[0].endswith(f":{PORT}")]) == 2
    assert ["=", "/metrics"] in found["location"] and ["404"] in found["return"]


def test_haproxy_asks_ready_and_tries_another_server_only_before_there_is_an_answer() -> None:
    found = haproxy()
    assert found["balance"] == "leastconn" and found["http-check"] == "expect status 200"
    assert "http-check send meth GET uri /ready" in PROXIES[1].read_text("utf-8") and "/ready" in paths()
    assert found["retry-on"] == "conn-failure 503" and found["retries"] == "1"
    assert min(seconds(found[f"timeout {side}"]) for side in ("client", "server")) >= 600
    assert found["server"].endswith(f":{PORT}") and "option http-buffer-request" not in found
