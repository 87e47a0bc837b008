"""The engine façade: one scheduler, one runner, and the loop between them.

Everything above (``LLM``, the server) talks to this class only: token ids in, events out. It knows no text, no thread
and no policy. Both data planes use it, since all they differ in is the runner.

With ``async_scheduling`` the engine runs ahead: step n+1 is planned and launched before the tokens of step n are on the
host. That is nothing but a queue of two pending steps in place of one, because a plan is made of lengths, not tokens.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol

from quire.reference.config import EngineConfig
from quire.reference.control.errors import RequestError
from quire.reference.control.params import BeamSearchParams, SamplingParams
from quire.reference.control.philox import derive_seed
from quire.reference.control.plan import Pending, StepPlan
from quire.reference.control.request import Event, Request, SchedulerStats
from quire.reference.control.scheduler import Scheduler

if TYPE_CHECKING:
    from quire.reference.trace import Recorder


class Runner(Protocol):
    """What the engine needs of a data plane."""

    def forward(self, plan: StepPlan) -> None: ...

    def sample(self, masks: Any = None) -> Pending: ...


class EngineError(RuntimeError):
    """A step failed. ``__cause__`` is the failure itself; the message repeats it. The engine cannot go on."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the engine must know of a model to check and run requests."""

    name: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class _InFlight:
    """A launched step; for the trace, when its phases began and ended and whose the sequences are that it brings in."""

    plan: StepPlan
    pending: Pending
    phases: dict[str, tuple[float, float]]
    owners: dict[int, str]  # seq_id -> request_id


class Engine:
    """Admit requests, run steps, report events. Not thread-safe: one thread at a time calls it."""

    def __init__(
        self,
        config: EngineConfig,
        model: ModelFacts,
        scheduler: Scheduler,
        runner: Runner,
        *,
        recorder: Recorder | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.scheduler = scheduler
        self.runner = runner
        self.recorder = recorder
        self._depth = 2 if config.async_scheduling else 1
        self._in_flight: deque[_InFlight] = deque()
        self._num_requests = 0
        self._failure: EngineError | None = None

    def check(
        self, prompt_token_ids: Sequence[int], params: SamplingParams | BeamSearchParams, priority: int = 0
    ) -> None:
        """Raise ``RequestError`` if this model and this engine could never run the request. Changes nothing."""
        _check_prompt(prompt_token_ids, self.model)
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
        params: SamplingParams | BeamSearchParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> str:
        """Admit one request and return its id. Raises ``RequestError``, and then nothing has changed.

        A request without a seed draws its numbers from the engine's seed and its place in the order of arrival;
        ``max_tokens=None`` becomes what the context leaves.
        """
        self._raise_if_failed()
        self.check(prompt_token_ids, params, priority)
        number = self._num_requests
        seed = None
        if isinstance(params, SamplingParams):
            seed = params.seed
            params = self._resolve(params, len(prompt_token_ids))
        if request_id is None:
            request_id = next(name for i in count(number) if (name := f"req-{i}") not in self.scheduler.groups)
        request = Request(
            request_id=request_id,
            prompt_token_ids=[int(t) for t in prompt_token_ids],
            params=params,
            seed=derive_seed(self.config.seed, number) if seed is None else seed,
            eos_token_ids=self.model.eos_token_ids,
            priority=priority,
            cache_salt=cache_salt,
        )
        self.scheduler.add(request)
        self._num_requests += 1
        if self.recorder is not None:
            self.recorder.request(request)
        return request.request_id

    def abort_request(self, request_id: str) -> list[Event]:
        """End a request wherever it is; its blocks go back. Returns its last events (none if it is unknown)."""
        events = self.scheduler.abort(request_id)
        if self.recorder is not None:
            for event in events:
                self.recorder.end(request_id, event.index, "abort")
        return events

    def finish(self, request_id: str, index: int) -> None:
        """End one of a request's sequences as finished (a stop string was found in its text)."""
        self.scheduler.finish(request_id, index)
        if self.recorder is not None:
            self.recorder.end(request_id, index, "stop")

    def has_request(self, request_id: str) -> bool:
        """Whether any of the request's sequences is still to end."""
        return request_id in self.scheduler.groups

    def has_unfinished(self) -> bool:
        return bool(self._in_flight) or self.scheduler.has_unfinished()

    def step(self) -> list[Event]:
        """Launch what can be launched, wait for the oldest step in flight, and report what it brought.

        An empty list is normal (a prompt chunk that samples nothing). Raises ``EngineError`` when a step fails.
        """
        self._raise_if_failed()
        step = None
        try:
            while len(self._in_flight) < self._depth:
                launched = self._launch()
                if launched is None:
                    break
                self._in_flight.append(launched)
            if not self._in_flight:
                if self.scheduler.has_unfinished():
                    raise RuntimeError(f"requests are waiting and none can be scheduled: {self.scheduler.stats()}")
                return []
            flight = self._in_flight.popleft()
            step = flight.plan.step
            return self._land(flight)
        except Exception as cause:
            which = "a step" if step is None else f"step {step}"
            self._failure = EngineError(f"{which} of the engine failed: {type(cause).__name__}: {cause}")
            raise self._failure from cause

    def stats(self) -> SchedulerStats:
        return self.scheduler.stats()

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; running requests are not disturbed."""
        self.scheduler.reset_prefix_cache()

    def close(self) -> None:
        """Write out the trace, if one is recorded."""
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None

    def _launch(self) -> _InFlight | None:
        t0 = time.perf_counter()
        plan = self.scheduler.schedule()
        if plan is None:
            return None
        owners = {}
        if self.recorder is not None:
            new = [s.seq_id for s in plan.starts] + [f.seq_id for f in plan.forks]
            owners = {i: self.scheduler.sequences[i].group.request.request_id for i in new}
        t1 = time.perf_counter()
        self.runner.forward(plan)
        t2 = time.perf_counter()
        pending = self.runner.sample()
        t3 = time.perf_counter()
        phases = {"schedule": (t0, t1), "forward": (t1, t2), "sample": (t2, t3)}
        return _InFlight(plan, pending, phases, owners)

    def _land(self, flight: _InFlight) -> list[Event]:
        t0 = time.perf_counter()
        result = flight.pending.wait()
        t1 = time.perf_counter()
        events = self.scheduler.update(flight.plan, result)
        if self.recorder is not None:
            flight.phases |= {"wait": (t0, t1), "update": (t1, time.perf_counter())}
            self.recorder.step(flight.plan, result, events, flight.phases, self.scheduler.stats(), flight.owners)
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


def _check_prompt(token_ids: Sequence[int], model: ModelFacts) -> None:
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


def _check_params(params: SamplingParams | BeamSearchParams, model: ModelFacts) -> None:
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
