"""API keys: no endpoint but the probes (and /metrics, by option) answers without one, and none of them ever shows."""

from __future__ import annotations

import asyncio
import logging

import pytest
from fastapi import FastAPI

from quire.reference.control.errors import ConfigError
from quire.server.auth import load_api_keys
from quire.server.config import ServerConfig
from tests.server.toy_app import http, toy_app

KEYS = ("sk-first", "sk-sécond")


def status(app: FastAPI, method: str, path: str, headers: dict | None = None) -> int:
    async def main() -> int:
        async with http(app) as client:
            return (await client.request(method, path, headers=headers)).status_code

    return asyncio.run(main())


def every_address(app: FastAPI) -> set[tuple[str, str]]:
    """(method, path) of every route, those of the documentation and of mounted applications too; and one of none."""
    found = {("GET", "/nowhere"), ("POST", "/nowhere"), ("OPTIONS", "/v1/models"), ("GET", "//health"), ("GET", "/")}
    for path, methods in app.openapi()["paths"].items():
        found |= {(method.upper(), path) for method in methods}
    for route in app.routes:
        found |= {
            (method, route.path) for method in getattr(route, "methods", None) or ("GET",) if hasattr(route, "path")
        }
    return found


def test_nothing_answers_without_a_key() -> None:
    app = toy_app(api_key=KEYS)
    addresses = every_address(app)
    assert {("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/mounted"), ("POST", "/length")} <= addresses
    answers = {(method, path): status(app, method, path) for method, path in addresses}
    open_to_all = {address for address, code in answers.items() if code != 401}
    assert {path for _, path in open_to_all} == {"/health", "/ready", "/metrics"}
    assert {method for method, _ in open_to_all} <= {"GET", "HEAD"}


def test_metrics_are_private_by_option() -> None:
    app = toy_app(api_key=KEYS, public_metrics=False)
    assert status(app, "GET", "/metrics") == 401 and status(app, "GET", "/health") == 503
    assert status(app, "GET", "/metrics", {"Authorization": "Bearer sk-first"}) == 200


def test_the_same_holds_where_the_application_is_mounted() -> None:
    outer = FastAPI()
    outer.mount("/llm", toy_app(api_key=KEYS))
    assert status(outer, "GET", "/llm/version") == 401
    assert status(outer, "GET", "/llm/metrics") == 200


@pytest.mark.parametrize(
    "header",
    [
        "Bearer sk-firs",
        "Bearer sk-first2",
        "Bearer ",
        "Bearer",
        "sk-first",
        "Basic sk-first",
        "",
        "Bearer sk-first,sk-first",
    ],
)
def test_a_wrong_key_is_refused_with_openais_error(header: str) -> None:
    async def main() -> None:
        async with http(toy_app(api_key=KEYS)) as client:
            response = await client.get("/version", headers={"Authorization": header})
            error = response.json()["error"]
            assert response.status_code == 401
            assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_api_key")
            assert response.headers["WWW-Authenticate"] == "Bearer" and response.headers["X-Request-Id"]

    asyncio.run(main())


def test_two_authorization_headers_are_none() -> None:
    async def main() -> None:
        async with http(toy_app(api_key=KEYS)) as client:
            twice = [("Authorization", "Bearer sk-first"), ("Authorization", "Bearer sk-first")]
            assert (await client.get("/version", headers=twice)).status_code == 401

    asyncio.run(main())


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_everything(key: str, scheme: str) -> None:
    header = {"Authorization": f"{scheme} {key}".encode()}
    app = toy_app(api_key=KEYS)
    assert status(app, "GET", "/version", header) == 200
    assert status(app, "GET", "/openapi.json", header) == 200
    assert status(app, "GET", "/nowhere", header) == 404


def test_without_keys_the_server_is_open() -> None:
    assert status(toy_app(), "GET", "/version") == 200


def test_keys_come_from_options_and_file_else_from_the_environment(tmp_path) -> None:
    file = tmp_path / "keys"
    file.write_text("# for the web site\nsk-web\n\n  sk-cron  \n")
    environ = {"QUIRE_API_KEY": "sk-env"}
    both = ServerConfig(api_key=("sk-a", "sk-b"), api_key_file=str(file))
    assert load_api_keys(both, environ) == ("sk-a", "sk-b", "sk-web", "sk-cron")
    assert load_api_keys(ServerConfig(), environ) == ("sk-env",)
    assert load_api_keys(ServerConfig(), {}) == ()


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n"])
def test_a_file_without_keys_is_an_error_and_not_an_open_server(tmp_path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match="holds no key"):
        load_api_keys(ServerConfig(api_key_file=str(file)), {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_api_keys(ServerConfig(api_key_file=str(tmp_path / "missing")), {})


@pytest.mark.parametrize("key", ["", " sk", "sk\n", "s\x00k"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(key: str) -> None:
    for config, environ in ((ServerConfig(api_key=(key,)), {}), (ServerConfig(), {"QUIRE_API_KEY": key})):
        with pytest.raises(ConfigError) as caught:
            load_api_keys(config, environ)
        assert not key.strip() or key not in str(caught.value)


def test_keys_are_never_logged_nor_shown(caplog) -> None:
    caplog.set_level(logging.DEBUG)
    app = toy_app(api_key=KEYS)
    for key in ("sk-first", "sk-guess"):
        status(app, "GET", "/version", {"Authorization": f"Bearer {key}"})
    assert "sk-" not in caplog.text and caplog.records
    assert "sk-" not in repr(app.state.quire.config)
