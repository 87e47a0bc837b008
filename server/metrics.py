"""Prometheus metrics, with vLLM's names under ``quire:`` so that its dashboards need no more than another prefix.

Three sources. What concerns requests is observed here, in the API process, where their outputs pass: once per message
of the engine, 0.7 µs per token. What concerns the engine (queues, cache, steps) is read off its latest snapshot when
somebody asks. HTTP is counted by the middleware. All of it is in docs/metrics.md.

Several API processes share what they observe through files in the folder that PROMETHEUS_MULTIPROC_DIR names
(prometheus_client's multiprocess mode; it has to be set before that package is imported: the supervisor does), so that
each of them answers for all. What comes from the engine is the same for everyone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.multiprocess import MultiProcessCollector

from quire.reference.control.errors import ConfigError
from quire.reference.control.params import SamplingParams
from quire.reference.output_processor import Processed
from quire.reference.outputs import RequestMetrics
from quire.server.client import EngineClient
from quire.server.context import RequestRecord

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"

FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
NEXT_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 40)
WHOLE_REQUEST = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)

# Name -> (buckets, help). They carry the label model_name.
HISTOGRAMS = {
    "time_to_first_token_seconds": (FIRST_TOKEN, "From a prompt's arrival to its first token"),
    "inter_token_latency_seconds": (NEXT_TOKEN, "Between two deliveries of tokens to the same completion"),
    "e2e_request_latency_seconds": (WHOLE_REQUEST, "From a prompt's arrival to the end of its last completion"),
    "request_queue_time_seconds": (WHOLE_REQUEST, "From a prompt's arrival to its first place in a step"),
    "request_prefill_time_seconds": (WHOLE_REQUEST, "From the first place in a step to the first token"),
    "request_decode_time_seconds": (WHOLE_REQUEST, "From the first token to the last"),
    "request_inference_time_seconds": (WHOLE_REQUEST, "From the first place in a step to the last token"),
    "request_prompt_tokens": (TOKENS, "Prompt tokens of a finished request"),
    "request_generation_tokens": (TOKENS, "Generated tokens of a finished request"),
    "request_params_n": ((1, 2, 5, 10, 20), "Completions asked for per prompt"),
    "request_params_max_tokens": (TOKENS, "max_tokens, of the requests that set it"),
}
COUNTERS = {
    "prompt_tokens": "Prompt tokens of the requests that have begun to answer",
    "prompt_tokens_cached": "Of these, found in the prefix cache",
    "generation_tokens": "Generated tokens",
}


class Metrics:
    """The metrics of one API process; ``exposition`` is what /metrics answers."""

    def __init__(self, engine: EngineClient, model_name: str) -> None:
        self._shared = folder = os.environ.get(MULTIPROC_DIR)
        if folder and not os.path.isdir(folder):
            raise ConfigError(MULTIPROC_DIR, folder, "not a folder", "Make an empty one for each server, or unset it")
        self._registry = registry = CollectorRegistry()
        self._engine = EngineCollector(engine, model_name)
        model = ("model_name",)
        self._seconds = {
            name: Histogram(f"quire:{name}", text, model, buckets=buckets, registry=registry).labels(model_name)
            for name, (buckets, text) in HISTOGRAMS.items()
        }
        self._counts = {
            name: Counter(f"quire:{name}", text, model, registry=registry).labels(model_name)
            for name, text in COUNTERS.items()
        }
        self._model_name = model_name
        self._success = Counter(
            "quire:request_success",
            "Completions that have ended, by how",
            (*model, "finished_reason"),
            registry=registry,
        )
        self._http = Counter(
            "quire:http_requests", "HTTP requests, by route", ("method", "path", "status"), registry=registry
        )
        self._http_seconds = Histogram(
            "quire:http_request_duration_seconds", "HTTP requests, to the end of the response", ("method", "path"),
            buckets=WHOLE_REQUEST, registry=registry,
        )  # fmt: skip
        self._http_errors = Counter(
            "quire:http_errors", "HTTP requests answered with an error, by its code", ("code",), registry=registry
        )
        if not self._shared:  # else there would be several answers to it
            ProcessCollector(registry=registry)
            registry.register(self._engine)

    def exposition(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        if not self._shared:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        registry.register(self._engine)
        return generate_latest(registry)

    def observe(self, processed: Processed) -> None:
        """What one message of the engine came to."""
        observe_gap = self._seconds["inter_token_latency_seconds"].observe
        for gap in processed.gaps:
            observe_gap(gap)
        if processed.num_tokens:
            self._counts["generation_tokens"].inc(processed.num_tokens)
        for request in processed.began:
            self._began(request)
        for request in processed.ended:
            self._ended(request)

    def admitted(self, params: object) -> None:
        """A request with these parameters is in the engine."""
        if isinstance(params, SamplingParams):
            self._seconds["request_params_n"].observe(params.n)
            if params.max_tokens is not None:
                self._seconds["request_params_max_tokens"].observe(params.max_tokens)

    def http_request(self, record: RequestRecord, path: str) -> None:
        """An HTTP request is over. ``path`` is its route's, so that clients cannot invent values for the label."""
        method = record.method if record.method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD") else "?"
        self._http.labels(method, path, str(record.status or "disconnected")).inc()
        self._http_seconds.labels(method, path).observe(time.monotonic() - record.began)
        if record.error is not None:
            self._http_errors.labels(record.error).inc()

    def _began(self, request: RequestMetrics) -> None:
        assert request.first_token_time is not None
        self._seconds["time_to_first_token_seconds"].observe(request.first_token_time - request.arrival_time)
        self._counts["prompt_tokens"].inc(request.num_prompt_tokens)
        self._counts["prompt_tokens_cached"].inc(request.num_cached_tokens)

    def _ended(self, request: RequestMetrics) -> None:
        """As vLLM: times of requests that never got so far are left out, the rest counts however it ended."""
        seconds = self._seconds
        for reason in request.finish_reasons:
            self._success.labels(self._model_name, reason).inc()
        seconds["request_prompt_tokens"].observe(request.num_prompt_tokens)
        seconds["request_generation_tokens"].observe(request.num_generation_tokens)
        if request.finished_time is not None:
            seconds["e2e_request_latency_seconds"].observe(request.finished_time - request.arrival_time)
        scheduled, first, last = request.scheduled_time, request.first_token_time, request.last_token_time
        if scheduled is not None and first is not None and last is not None:
            seconds["request_queue_time_seconds"].observe(scheduled - request.arrival_time)
            seconds["request_prefill_time_seconds"].observe(first - scheduled)
            seconds["request_decode_time_seconds"].observe(last - first)
            seconds["request_inference_time_seconds"].observe(last - scheduled)


class EngineCollector:
    """The engine's latest snapshot as metrics, made anew whenever they are asked for."""

    def __init__(self, engine: EngineClient, model_name: str) -> None:
        self._engine = engine
        self._label = model_name

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats
        gauges = {
            "num_requests_running": (stats.num_running, "Sequences that have a place in the steps"),
            "num_requests_waiting": (stats.num_waiting, "Sequences that wait for one, or for their grammar"),
            "kv_cache_usage_perc": (
                stats.blocks_used / max(stats.blocks_total, 1),
                "Part of the blocks in use, 0 to 1",
            ),
            "engine_up": (self._engine.state == "ready", "1 while the engine serves"),
        }
        for name, (value, text) in gauges.items():
            gauge = GaugeMetricFamily(f"quire:{name}", text, labels=("model_name",))
            gauge.add_metric((self._label,), float(value))
            yield gauge
        counters = {
            "prefix_cache_queries": (stats.prefix_queries, "Prompt tokens looked up in the prefix cache"),
            "prefix_cache_hits": (stats.prefix_hits, "Of these, found"),
            "num_preemptions": (stats.num_preemptions, "Sequences that had to give their blocks back"),
            "kv_blocks_copied": (stats.num_copies, "Blocks copied on write"),
            "kv_blocks_swapped_out": (stats.num_swapped_out, "Blocks moved to host memory"),
            "kv_blocks_swapped_in": (stats.num_swapped_in, "Blocks moved back from host memory"),
            "spec_decode_num_drafts": (stats.num_drafts, "Steps of a sequence that had drafts to verify"),
            "spec_decode_num_draft_tokens": (stats.num_draft_tokens, "Drafts in all of them"),
            "spec_decode_num_accepted_tokens": (stats.num_accepted_tokens, "Of these, accepted"),
            "verify_steps": (stats.steps_verified, "Steps that the reference computed once more"),
            "verify_divergences": (stats.steps_diverged, "Of these, found to differ"),
        }
        for name, (value, text) in counters.items():
            counter = CounterMetricFamily(f"quire:{name}", text, labels=("model_name",))
            counter.add_metric((self._label,), value)
            yield counter
        yield self._accepted_by_position()
        yield self._iteration_tokens()
        info = InfoMetricFamily("quire:cache_config", "How the KV cache is set up", labels=("model_name",))
        info.add_metric((self._label,), {"num_blocks": str(stats.blocks_total), "block_size": str(stats.block_size)})
        yield info

    def _accepted_by_position(self) -> CounterMetricFamily:
        family = CounterMetricFamily(
            "quire:spec_decode_num_accepted_tokens_per_pos",
            "Accepted drafts by their place in the step, from 0",
            labels=("model_name", "position"),
        )
        for position, count in enumerate(self._engine.stats.accepted_by_position or [0]):
            family.add_metric((self._label, str(position)), count)
        return family

    def _iteration_tokens(self) -> HistogramMetricFamily:
        stats = self._engine.stats
        buckets, total = [], 0
        for exponent, steps in enumerate(stats.steps_by_tokens):
            total += steps
            buckets.append((str(float(2**exponent)), float(total)))
        family = HistogramMetricFamily("quire:iteration_tokens_total", "Tokens per step", labels=("model_name",))
        family.add_metric((self._label,), [*buckets, ("+Inf", float(total))], stats.tokens_planned)
        return family
