"""OpenTelemetry: a span for every call of the model, with vLLM's ``gen_ai`` attributes.

A span is made when its request is over and everything is known, with the times at which it really began and ended. It
becomes a child of the client's span if that sent ``traceparent``. The packages are those of the extra ``quire[otel]``;
they are imported only where an endpoint is configured.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from quire.reference.control.errors import ConfigError
from quire.reference.outputs import RequestMetrics
from quire.server.context import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


class Tracing:
    """Spans go to ``exporter`` in batches, from a thread of their own; ``close`` sends what is left."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # Not made the process's global provider: the application may be mounted in one that has its own.
        self._provider = TracerProvider(resource=Resource.create({"service.name": "quire"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("quire")
        self._extract = TraceContextTextMapPropagator().extract

    def record(self, request: RequestRecord, headers: list[tuple[bytes, bytes]]) -> None:
        """The span of a request that is over."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        end = time.time_ns()
        span = self._tracer.start_span(
            "llm_request",
            context=self._extract(carrier),
            kind=SpanKind.SERVER,
            start_time=end - int((time.monotonic() - request.began) * 1e9),
            attributes=attributes(request),
        )
        if request.status is None or request.status >= 500:
            span.set_status(Status(StatusCode.ERROR, request.error or "the client left before the answer"))
        span.end(end_time=end)

    def close(self) -> None:
        self._provider.shutdown()


def tracing_to(endpoint: str | None) -> Tracing | None:
    """Where ``otlp_traces_endpoint`` says: over gRPC for ``grpc://`` (``grpcs://`` with TLS), else over HTTP.

    None without an endpoint. Raises ``ConfigError`` if the extra is not installed or this is no address.
    """
    if endpoint is None:
        return None
    scheme, _, address = endpoint.partition("://")
    if scheme not in ("http", "https", "grpc", "grpcs") or not address:
        raise ConfigError(
            "otlp_traces_endpoint", endpoint, "not an address of a collector",
            "Give one such as http://localhost:4318/v1/traces or grpc://localhost:4317",
        )  # fmt: skip
    try:
        if scheme.startswith("grpc"):
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

            return Tracing(Grpc(endpoint=address, insecure=scheme == "grpc"))
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

        return Tracing(Http(endpoint=endpoint))
    except ImportError as error:
        raise ConfigError(
            "otlp_traces_endpoint", endpoint, f"OpenTelemetry is not installed ({error})",
            "Install it with: pip install 'quire[otel]'",
        ) from error  # fmt: skip


def attributes(request: RequestRecord) -> dict[str, Any]:
    """What is known of a request, without what does not apply; of several prompts the longest times."""
    prompts = request.prompts
    times = {
        "time_in_queue": [_between(p.arrival_time, p.scheduled_time) for p in prompts],
        "time_to_first_token": [_between(p.arrival_time, p.first_token_time) for p in prompts],
        "e2e": [_between(p.arrival_time, p.finished_time) for p in prompts],
        "time_in_model_prefill": [_between(p.scheduled_time, p.first_token_time) for p in prompts],
        "time_in_model_decode": [_between(p.first_token_time, p.last_token_time) for p in prompts],
        "time_in_model_inference": [_between(p.scheduled_time, p.last_token_time) for p in prompts],
    }
    found: dict[str, Any] = {
        "gen_ai.request.id": request.id,
        "gen_ai.response.model": request.model,
        "gen_ai.usage.prompt_tokens": _total(prompts, "num_prompt_tokens"),
        "gen_ai.usage.completion_tokens": _total(prompts, "num_generation_tokens"),
        "gen_ai.response.finish_reasons": [reason for p in prompts for reason in p.finish_reasons] or None,
        "http.request.method": request.method,
        "url.path": request.path,
        "http.response.status_code": request.status,
        "error.type": request.error,
    }
    for name, values in times.items():
        found[f"gen_ai.latency.{name}"] = max((v for v in values if v is not None), default=None)
    return {name: value for name, value in found.items() if value is not None}


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin


def _total(prompts: list[RequestMetrics], field: str) -> int | None:
    return sum(getattr(p, field) for p in prompts) if prompts else None
