"""The engine façade: one scheduler, one runner, and the loop between them.

Everything above (``LLM``, the server) talks to this class only: token ids in, events out. It knows no text, no thread
and no policy. Both data planes use it, since all they differ in is the runner.

With ``async_scheduling`` the engine runs ahead: step n+1 is planned and launched before the tokens of step n are on the
host. That is nothing but a queue of two pending steps in place of one, because a plan is made of lengths, not tokens.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol

from quire.reference.config import EngineConfig
from quire.reference.control.errors import RequestError
from quire.reference.control.inspection import Planned, Snapshot, Watch, snapshot
from quire.reference.control.params import BeamSearchParams, PoolingParams, RequestParams, SamplingParams
from quire.reference.control.philox import derive_seed
from quire.reference.control.plan import Pending, StepPlan
from quire.reference.control.request import Event, FinishReason, Request, SchedulerStats
from quire.reference.control.scheduler import Scheduler
from quire.reference.structured.manager import StructuredOutputs

if TYPE_CHECKING:
    from quire.reference.trace import StepRecord

COMPILING = 0.01  # seconds that a step waits for a grammar if there is nothing else to do


class Runner(Protocol):
    """What the engine needs of a data plane."""

    def forward(self, plan: StepPlan) -> None: ...

    def sample(self, masks: Any = None) -> Pending: ...


class Verified(Protocol):
    """What shadow verification has counted: steps verified, and how many of them diverged."""

    steps: int
    divergences: int


class Recording(Protocol):
    """Who is told of every step, such as ``trace.Recorder``."""

    def request(self, request: Request) -> None: ...

    def end(self, request_id: str, index: int, reason: str) -> None: ...

    def step(self, step: StepRecord) -> None: ...

    def close(self) -> None: ...


class EngineError(RuntimeError):
    """A step failed. ``__cause__`` is the failure itself; the message repeats it. The engine cannot go on."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the engine must know of a model to check and run requests. ``embedding_size``: numbers in its embeddings."""

    name: str
    vocab_size: int
    max_model_len: int
    embedding_size: int
    eos_token_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class _InFlight:
    """A launched step; for the trace, when its phases began and ended and what the plan changed."""

    plan: StepPlan
    pending: Pending
    phases: dict[str, tuple[float, float]]
    planned: Planned | None


class Engine:
    """Admit requests, run steps, report events. Not thread-safe: one thread at a time calls it.

    ``tokenizer`` is asked for at the first request with structured outputs; without it there are none. ``verified`` is
    the runner itself if it verifies its steps.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: ModelFacts,
        scheduler: Scheduler,
        runner: Runner,
        *,
        tokenizer: Callable[[], Any] | None = None,
        recorder: Recording | None = None,
        verified: Verified | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.scheduler = scheduler
        self.runner = runner
        self.recorders: list[Recording] = []
        self._watch: Watch | None = None  # while there are recorders
        self.verified = verified
        self._structured = StructuredOutputs(tokenizer, model.vocab_size, model.eos_token_ids)
        self._depth = 2 if config.async_scheduling else 1
        self._in_flight: deque[_InFlight] = deque()
        self._num_requests = 0
        self._steps_by_tokens: list[int] = []
        self._tokens_planned = 0
        self._failure: EngineError | None = None
        if recorder is not None:
            self.attach(recorder)

    def attach(self, recorder: Recording) -> None:
        """Tell ``recorder`` of all requests and steps from now on. Who begins in the middle asks for a ``snapshot``."""
        self.recorders.append(recorder)
        if self._watch is None:
            self._watch = Watch(self.scheduler)

    def detach(self, recorder: Recording) -> None:
        """Tell it no more. Without recorders nothing is noted for them."""
        self.recorders.remove(recorder)
        if not self.recorders and self._watch is not None:
            self._watch.close()
            self._watch = None

    def snapshot(self) -> Snapshot:
        """How everything stands, requests, block tables and prefix cache; its cost goes with their number."""
        held = [request for request, _ in self._structured.waiting.values()]
        return snapshot(self.scheduler, held, self.stats())

    def check(self, prompt_token_ids: Sequence[int], params: RequestParams, priority: int = 0) -> None:
        """Raise ``RequestError`` if this model and this engine could never run the request. Changes nothing.

        A grammar is compiled here, and kept, if it is new.
        """
        self._check(prompt_token_ids, params, priority)
        if isinstance(params, SamplingParams) and params.structured_outputs is not None:
            self._structured.compiler.compile(params.structured_outputs)

    def _check(self, prompt_token_ids: Sequence[int], params: RequestParams, priority: int = 0) -> None:
        """What can be checked at once."""
        check_prompt(prompt_token_ids, self.model)
        _check_params(params, self.model)
        if priority != 0 and self.config.scheduling_policy != "priority":
            raise RequestError(
                "priority", priority, "would have no effect under scheduling_policy='fcfs'",
                'Leave it out, or start the engine with scheduling_policy="priority"',
            )  # fmt: skip
        self.scheduler.check(len(prompt_token_ids), params)
        room = self.model.max_model_len - len(prompt_token_ids)
        if isinstance(params, SamplingParams) and params.min_tokens > room:
            raise RequestError(
                "min_tokens", params.min_tokens, f"the context leaves room for {room} tokens after this prompt",
                "Lower min_tokens or shorten the prompt",
            )  # fmt: skip

    def add_request(
        self,
        prompt_token_ids: Sequence[int],
        params: RequestParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> str:
        """Admit one request and return its id. Raises ``RequestError``, and then nothing has changed.

        Nothing is waited for: a new grammar is compiled in the background, and should it turn out to be none, the
        request ends with an "error" (``check`` knows beforehand). A request without a seed draws its numbers from the
        engine's seed and its place in the order of arrival; ``max_tokens=None`` becomes what the context leaves.
        """
        self._raise_if_failed()
        self._check(prompt_token_ids, params, priority)
        number = self._num_requests
        seed = None
        if isinstance(params, SamplingParams):
            seed = params.seed
            params = self._resolve(params, len(prompt_token_ids))
        if request_id is None:
            request_id = next(name for i in count(number) if not self.has_request(name := f"req-{i}"))
        elif self.has_request(request_id):
            raise RequestError("request_id", request_id, "already in use", "Give each request an id of its own")
        request = Request(
            request_id=request_id,
            prompt_token_ids=[int(t) for t in prompt_token_ids],
            params=params,
            seed=derive_seed(self.config.seed, number) if seed is None else seed,
            eos_token_ids=self.model.eos_token_ids,
            priority=priority,
            cache_salt=cache_salt,
        )
        if not self._structured.hold(request):
            self.scheduler.add(request)
        self._num_requests += 1
        for recorder in tuple(self.recorders):
            recorder.request(request)
        return request.request_id

    def abort_request(self, request_id: str) -> list[Event]:
        """End a request wherever it is; its blocks go back. Returns its last events (none if it is unknown)."""
        events = self.scheduler.abort(request_id) or self._structured.abort(request_id)
        self._structured.forget(request_id, self.scheduler.groups)
        for recorder in tuple(self.recorders):
            for event in events:
                recorder.end(request_id, event.index, "abort")
        return events

    def finish(self, request_id: str, index: int, reason: FinishReason = "stop") -> None:
        """End one of a request's sequences as finished (a stop string was found in its text)."""
        self.scheduler.finish(request_id, index)
        self._structured.forget(request_id, self.scheduler.groups)
        for recorder in tuple(self.recorders):
            recorder.end(request_id, index, reason)

    def has_request(self, request_id: str) -> bool:
        """Whether any of the request's sequences is still to end."""
        return request_id in self.scheduler.groups or request_id in self._structured.waiting

    def has_unfinished(self) -> bool:
        return bool(self._in_flight) or self.scheduler.has_unfinished() or bool(self._structured.waiting)

    def step(self) -> list[Event]:
        """Launch what can be launched, wait for the oldest step in flight, and report what it brought.

        An empty list is normal (a prompt chunk that samples nothing). Raises ``EngineError`` when a step fails; what
        has arrived before that is reported first.
        """
        self._raise_if_failed()
        events: list[Event] = []
        step = None
        try:
            events += self._admit_compiled()
            landed = self._launch_up_to(self._depth)
            if landed is not None:
                return events + landed
            if not self._in_flight:
                if self.scheduler.has_unfinished():
                    raise RuntimeError(f"requests are waiting and none can be scheduled: {self.scheduler.stats()}")
                return events
            flight = self._in_flight.popleft()
            step = flight.plan.step
            events += self._land(flight)
            step = None
            # Running ahead there is a step on its way while the events are looked at: also one that had to wait for
            # this result, since it verifies drafts, say.
            events += self._launch_up_to(self._depth - 1) or []
        except Exception as cause:
            which = "a step" if step is None else f"step {step}"
            self._failure = EngineError(f"{which} of the engine failed: {type(cause).__name__}: {cause}")
            self._failure.__cause__ = cause
            if not events:
                raise self._failure from cause
        return events

    def stats(self) -> SchedulerStats:
        stats = self.scheduler.stats()
        stats.num_waiting += len(self._structured.waiting)
        stats.steps_by_tokens = list(self._steps_by_tokens)
        stats.tokens_planned = self._tokens_planned
        if self.verified is not None:
            stats.steps_verified, stats.steps_diverged = self.verified.steps, self.verified.divergences
        return stats

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; running requests are not disturbed."""
        self.scheduler.reset_prefix_cache()

    def prepare_structured_outputs(self) -> None:
        """Do now what else the first request with structured outputs does: with 150,000 tokens it stops a second."""
        _ = self._structured.compiler.tokenizer

    def close(self) -> None:
        """Write out the trace, if one is recorded; compile no more grammars."""
        self._structured.close()
        for recorder in tuple(self.recorders):
            self.detach(recorder)
            recorder.close()

    def _launch_up_to(self, depth: int) -> list[Event] | None:
        """Launch steps until so many are in flight, or no more can be; the events of those that were landed for it."""
        while len(self._in_flight) < depth:
            launched, landed = self._launch()
            if launched is None:
                break
            self._in_flight.append(launched)
            if landed is not None:  # the masks of this step had to wait for the one before: it has been waited for
                return landed
        return None

    def _launch(self) -> tuple[_InFlight | None, list[Event] | None]:
        """Launch a step, if there is one to launch; with the events of those that had to be landed for its masks."""
        t0 = time.perf_counter()
        plan = self.scheduler.schedule()
        if plan is None:
            return None, None
        self._count(plan)
        for start in plan.starts:
            group = self.scheduler.sequences[start.seq_id].group
            if group.scheduled_time is None:
                group.scheduled_time = time.monotonic()
        planned = None if self._watch is None else self._watch.planned(plan)
        t1 = time.perf_counter()
        self.runner.forward(plan)
        t2 = time.perf_counter()
        masks, landed = self._masks(plan)
        t3 = time.perf_counter()
        pending = self.runner.sample(masks)
        t4 = time.perf_counter()
        phases = {"schedule": (t0, t1), "forward": (t1, t2), "sample": (t3, t4)}
        if masks:
            phases["mask"] = (t2, t3)
        return _InFlight(plan, pending, phases, planned), landed

    def _count(self, plan: StepPlan) -> None:
        """For ``stats``: one more step of that many tokens."""
        num_tokens = sum(seq.n for seq in plan.seqs)
        self._tokens_planned += num_tokens
        exponent = max(num_tokens - 1, 0).bit_length()
        self._steps_by_tokens += [0] * (exponent + 1 - len(self._steps_by_tokens))
        self._steps_by_tokens[exponent] += 1

    def _masks(self, plan: StepPlan) -> tuple[dict[int, Any], list[Event] | None]:
        """The masks of a step whose forward pass is on its way, and the events of what they had to wait for.

        A mask depends on every token before it, so steps in flight that bring some of them are landed first. A sequence
        for which no token is left ends here; what is sampled for it is dropped like any result that comes too late.
        """
        sequences = self.scheduler.sequences
        masked = self._structured.masked(plan, sequences)
        landed: list[Event] | None = None
        while any(seq.in_flight > 1 for seq in masked.values()):
            landed = (landed or []) + self._land(self._in_flight.popleft())
            masked = self._structured.masked(plan, sequences)  # some may have ended
        masks, ended = self._structured.masks(masked)
        for seq, why in ended:
            event = seq.append([])  # with what the first event of a sequence carries
            event.finish_reason, event.error = "stop" if why.problem is None else "error", why.problem
            self.finish(event.request_id, event.index, event.finish_reason)
            landed = [*(landed or []), event]
        return masks, landed

    def _land(self, flight: _InFlight) -> list[Event]:
        t0 = time.perf_counter()
        result = flight.pending.wait()
        t1 = time.perf_counter()
        events = self.scheduler.update(flight.plan, result)
        self._structured.take(events, self.scheduler.groups)
        if self._watch is not None:
            from quire.reference.trace import StepRecord

            phases = flight.phases | {"wait": (t0, t1), "update": (t1, time.perf_counter())}
            landed = self._watch.landed(flight.plan)
            record = StepRecord(flight.plan, result, events, phases, self.scheduler.stats(), flight.planned, landed)
            for recorder in tuple(self.recorders):
                recorder.step(record)
        return events

    def _admit_compiled(self) -> list[Event]:
        """Let those requests in whose grammar has been compiled; the ends of those whose grammar is none."""
        if not self._structured.waiting:
            return []
        idle = not self._in_flight and not self.scheduler.has_unfinished()
        requests, events = self._structured.released(COMPILING if idle else None)
        for request in requests:
            self.scheduler.add(request)
        for recorder in tuple(self.recorders):
            for event in events:
                recorder.end(event.request_id, event.index, "error")
        return events

    def _resolve(self, params: SamplingParams, prompt_len: int) -> SamplingParams:
        """The parameters with nothing left open: a length limit, and the log-probabilities that best_of ranks by."""
        changes: dict[str, Any] = {}
        if params.max_tokens is None:
            changes["max_tokens"] = self.model.max_model_len - prompt_len
        if params.num_sequences > params.n and params.logprobs is None:
            changes["logprobs"] = 0
        return replace(params, **changes) if changes else params

    def _raise_if_failed(self) -> None:
        if self._failure is not None:  # a new error each time: raising one again would lengthen its traceback
            raise EngineError(*self._failure.args) from self._failure.__cause__


def check_prompt(token_ids: Sequence[int], model: ModelFacts) -> None:
    """Raise ``RequestError`` if ``token_ids`` are not tokens of the model: before anything is done with them."""
    if isinstance(token_ids, str | bytes) or not hasattr(token_ids, "__len__"):
        raise RequestError("prompt_token_ids", token_ids, "not a list of token ids", "Give a list of integers")
    if set(map(type, token_ids)) == {int} and min(token_ids) >= 0 and max(token_ids) < model.vocab_size:
        return  # the usual case, at the speed of C; what follows finds the culprit
    for position, token in enumerate(token_ids):
        if isinstance(token, bool) or not isinstance(token, Integral):
            raise RequestError("prompt_token_ids", token, f"not an integer, at position {position}", "Give token ids")
        if not 0 <= token < model.vocab_size:
            raise RequestError(
                "prompt_token_ids", int(token), f"no token of this model, at position {position}",
                f"Give ids from 0 to {model.vocab_size - 1}",
            )  # fmt: skip


def _check_params(params: RequestParams, model: ModelFacts) -> None:
    if isinstance(params, PoolingParams):
        if (params.dimensions or 1) > model.embedding_size:
            raise RequestError(
                "dimensions", params.dimensions, f"this model's embeddings have {model.embedding_size} numbers",
                f"Give at most {model.embedding_size}",
            )  # fmt: skip
        return
    token_ids: dict[str, Sequence[int]] = {}
    if isinstance(params, SamplingParams):
        token_ids = {
            "logit_bias": list(params.logit_bias or ()),
            "allowed_token_ids": params.allowed_token_ids or (),
            "bad_words_token_ids": [t for word in params.bad_words_token_ids for t in word],
        }
        for field, count in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
            if (count or 0) > model.vocab_size:
                raise RequestError(field, count, "more than the model has tokens", f"Give at most {model.vocab_size}")
        if params.bad_words and not params.bad_words_token_ids:
            raise RequestError(
                "bad_words", params.bad_words, "strings, which need a tokenizer to become token ids",
                "Load the model's tokenizer, or use logit_bias on token ids",
            )  # fmt: skip
    elif not isinstance(params, BeamSearchParams):
        raise RequestError("sampling_params", params, "not sampling parameters", "Give a SamplingParams")
    token_ids["stop_token_ids"] = params.stop_token_ids or ()
    for field, ids in token_ids.items():
        for token in ids:
            if not 0 <= token < model.vocab_size:
                raise RequestError(field, token, "no token of this model", f"Give ids from 0 to {model.vocab_size - 1}")
