"""The log: a line per request with its figures, the id in every line, one format for all, and no secret in any."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

import pytest
import uvicorn

from quire.reference.control.errors import ConfigError
from quire.server.config import ServerConfig
from quire.server.context import RequestRecord, current
from quire.server.logging import configure_logging, log_request
from tests.reference.ghost import GhostRunner, ghost_engine
from tests.server.conftest import serve

CONFIGURED = ("", "quire", "uvicorn", "uvicorn.error", "uvicorn.access")


@pytest.fixture
def lines(capsys) -> Iterator[Callable[[], list[str]]]:
    """A function that returns the lines that went to stderr; afterwards logging is as it was."""
    loggers = [logging.getLogger(name) for name in CONFIGURED]
    before = [(x.handlers, x.level, x.propagate, x.disabled) for x in loggers]
    yield lambda: capsys.readouterr().err.splitlines()
    for logger, (handlers, level, propagate, disabled) in zip(loggers, before):
        logger.handlers, logger.propagate, logger.disabled = handlers, propagate, disabled
        logger.setLevel(level)


@pytest.fixture
def request_at_hand() -> Iterator[RequestRecord]:
    record = RequestRecord("abc", "GET", "/x")
    token = current.set(record)
    yield record
    current.reset(token)


def test_a_request_is_one_line_with_its_figures(lines) -> None:
    configure_logging(ServerConfig(log_format="json"))
    with serve(engine=ghost_engine(GhostRunner()), server=ServerConfig(api_key=("sk-key",))) as live:
        headers = {"X-Request-Id": "mine", "Authorization": "Bearer sk-key"}
        with live.http(headers=headers) as client:
            body = {"prompt": [[1, 2, 3], [4, 5]], "max_tokens": 6, "ignore_eos": True, "user": "a secret"}
            assert client.post("/v1/completions?a-secret", json=body).status_code == 200
            client.post("/v1/completions", json={"prompt": "a secret", "nonsense": 1})
            client.get("/health")
    log = lines()
    served = [json.loads(line) for line in log if '"quire.request"' in line]
    first, second = [entry for entry in served if entry["request_id"] == "mine"]  # none of the probe
    assert 0 < first.pop("ttft") < first.pop("duration") and first.pop("time").endswith("Z")
    assert first == {
        "level": "INFO", "logger": "quire.request", "message": "request", "request_id": "mine", "method": "POST",
        "path": "/v1/completions", "status": 200, "model": "pocket", "prompt_tokens": 5, "output_tokens": 12,
        "finish_reason": "length",
    }  # fmt: skip
    assert (second["status"], second["error"]) == (400, "unknown_parameter")
    assert "prompt_tokens" not in second and "ttft" not in second
    assert not any("sk-key" in line or "secret" in line for line in log)


def test_a_stream_that_breaks_says_why(lines) -> None:
    """Its status was sent long before: 200."""
    configure_logging(ServerConfig(log_format="json"))
    with serve(engine=ghost_engine(GhostRunner(fail_at=2))) as live, live.http() as client:
        told = client.post("/v1/completions", json={"prompt": [1, 2], "ignore_eos": True, "stream": True})
        assert told.status_code == 200 and "told to fail" in told.text
    served = [json.loads(line) for line in lines() if '"quire.request"' in line]
    assert [(line["status"], line["error"]) for line in served] == [(200, "engine_unavailable")]


def test_the_line_can_be_switched_off(lines) -> None:
    configure_logging(ServerConfig())
    with (
        serve(engine=ghost_engine(GhostRunner()), server=ServerConfig(log_requests=False)) as live,
        live.http() as client,
    ):
        client.post("/v1/completions", json={"prompt": [1], "max_tokens": 1})
    assert not any("quire.request" in line for line in lines())


def test_every_line_of_a_request_has_its_id(lines, request_at_hand) -> None:
    configure_logging(ServerConfig())
    logging.getLogger("quire.somewhere").info("doing %s", "things")
    logging.getLogger("library").warning("careful")
    assert [line.split(" ", 3)[3] for line in lines()] == [
        "quire.somewhere: doing things request_id=abc",
        "library: careful request_id=abc",
    ]


def test_nobody_forges_a_line(lines, request_at_hand) -> None:
    request_at_hand.path = "/x\n2026-01-31 CRITICAL forged \x1b[2J status=200"
    for log_format in ("text", "json"):
        configure_logging(ServerConfig(log_format=log_format))
        log_request(request_at_hand, quiet=False)
    text, line = lines()
    assert r'path="/x\n2026-01-31 CRITICAL forged \u001b[2J status=200" status=disconnected' in text
    assert json.loads(line)["path"] == request_at_hand.path


def test_a_traceback_is_part_of_its_json_line(lines, request_at_hand) -> None:
    configure_logging(ServerConfig(log_format="json"))
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        logging.getLogger("quire.server").exception("failed")
    (line,) = map(json.loads, lines())
    assert line["request_id"] == "abc" and line["exception"].endswith("ZeroDivisionError: why")


def test_uvicorn_logs_in_the_same_format_and_not_every_request_once_more(lines) -> None:
    configure_logging(ServerConfig(log_format="json"))
    uvicorn.Config("nowhere:app", log_config=None)
    logging.getLogger("uvicorn.error").info("Started")
    logging.getLogger("uvicorn.access").info("GET /")
    assert [json.loads(line)["message"] for line in lines()] == ["Started"]


def test_the_level_comes_from_the_environment(lines, monkeypatch) -> None:
    monkeypatch.setenv("QUIRE_LOGGING_LEVEL", "error")
    configure_logging(ServerConfig())
    logging.getLogger("quire").warning("unseen")
    logging.getLogger("quire").error("seen")
    assert [line.split(" ", 2)[2] for line in lines()] == ["ERROR quire: seen"]
    monkeypatch.setenv("QUIRE_LOGGING_LEVEL", "loud")
    with pytest.raises(ConfigError, match="QUIRE_LOGGING_LEVEL"):
        configure_logging(ServerConfig())
