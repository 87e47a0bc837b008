"""Spans: one per request, in the client's trace, with what became of it and never with what it said."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from quire.reference.control.errors import ConfigError
from quire.server.tracing import Tracing, tracing_to
from tests.reference.ghost import GhostRunner, ghost_engine
from tests.server.conftest import LiveServer, serve

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def traced(spans: list[ReadableSpan]) -> Iterator[LiveServer]:
    """A server; ``spans`` holds all of its spans once it has shut down."""
    exporter = InMemorySpanExporter()
    with serve(engine=ghost_engine(GhostRunner())) as live:
        live.state.tracing = Tracing(exporter)
        yield live
    spans += exporter.get_finished_spans()


def post(live: LiveServer, body: dict, **headers: str):
    with live.http() as client:
        return client.post("/v1/completions", json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def test_a_request_is_a_span_with_its_figures() -> None:
    body = {"prompt": [[1, 2, 3], [4, 5]], "max_tokens": 6, "ignore_eos": True}
    with traced(spans := []) as live:
        assert post(live, body, X_Request_Id="mine").status_code == 200
    (span,) = spans
    assert span.name == "llm_request" and span.parent is None and span.status.is_ok is not False
    found = dict(span.attributes)
    latency = {name: found.pop(f"gen_ai.latency.{name}") for name in (
        "time_in_queue", "time_to_first_token", "e2e", "time_in_model_prefill", "time_in_model_decode",
        "time_in_model_inference",
    )}  # fmt: skip
    assert found == {
        "gen_ai.request.id": "mine",
        "gen_ai.response.model": "pocket",
        "gen_ai.usage.prompt_tokens": 5,
        "gen_ai.usage.completion_tokens": 12,
        "gen_ai.response.finish_reasons": ("length", "length"),
        "http.request.method": "POST",
        "url.path": "/v1/completions",
        "http.response.status_code": 200,
    }
    assert 0 < latency["time_in_queue"] < latency["time_to_first_token"] < latency["e2e"]
    assert latency["time_in_model_prefill"] <= latency["time_in_model_inference"] < latency["e2e"]
    assert span.end_time - span.start_time >= latency["e2e"] * 1e9


def test_it_belongs_to_the_clients_trace() -> None:
    with traced(spans := []) as live:
        post(live, {"prompt": [1], "max_tokens": 1}, traceparent=f"00-{TRACE}-{PARENT}-01")
        post(live, {"prompt": [1], "max_tokens": 1}, traceparent="00-nonsense")
    first, second = spans
    assert f"{first.context.trace_id:032x}" == TRACE and f"{first.parent.span_id:016x}" == PARENT
    assert second.parent is None


def test_refusals_are_spans_too_and_probes_are_none() -> None:
    with traced(spans := []) as live, live.http() as client:
        for path in ("/health", "/ready", "/metrics"):
            client.get(path)
        post(live, {"prompt": [1], "nonsense": 1})
    (span,) = spans
    assert span.attributes["error.type"] == "unknown_parameter"
    assert span.attributes["http.response.status_code"] == 400
    assert "gen_ai.usage.prompt_tokens" not in span.attributes


def test_what_was_said_is_in_no_span() -> None:
    with traced(spans := []) as live:
        post(live, {"prompt": "my secret", "max_tokens": 1, "user": "secret"}, Authorization="Bearer sk-secret")
    assert spans and "secret" not in "".join(span.to_json() for span in spans)


def test_without_the_packages_the_error_says_how_to_get_them(monkeypatch) -> None:
    assert tracing_to(None) is None
    for protocol, endpoint in (("http", "http://host:4318/v1/traces"), ("grpc", "grpc://host:4317")):
        monkeypatch.setitem(sys.modules, f"opentelemetry.exporter.otlp.proto.{protocol}.trace_exporter", None)
        with pytest.raises(ConfigError, match=r"pip install 'quire\[otel\]'"):
            tracing_to(endpoint)


@pytest.mark.parametrize("endpoint", ["localhost:4317", "http://", "ftp://host", ""])
def test_an_address_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="not an address of a collector"):
        tracing_to(endpoint)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9/v1/traces", "grpc://127.0.0.1:9", "grpcs://127.0.0.1:9"])
def test_a_collector_that_is_not_there_is_no_reason_not_to_start(endpoint: str) -> None:
    tracing = tracing_to(endpoint)
    assert tracing is not None
    tracing.close()
