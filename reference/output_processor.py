"""From the scheduler's events to what a user sees: text, stop strings, logprobs, metrics.

The engine façade knows token ids only. This part stands on top of it, the same for ``LLM`` and for the server:
``add`` a request when it enters the engine, hand every batch of events to ``process``, pass on the outputs, and tell
the engine which sequences a stop string has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quire.reference.control import plan
from quire.reference.control.errors import CheckpointError
from quire.reference.control.params import BeamSearchParams, PoolingParams, RequestParams, SamplingParams
from quire.reference.control.request import Event
from quire.reference.detokenizer import CompletionText, Detokenizer, token_decoder
from quire.reference.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, logprob_dict


@dataclass(slots=True)
class _Completion:
    """What has arrived for one completion so far, and how much of it a stream has given out."""

    index: int
    text: CompletionText | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    given: int = 0
    last_token_time: float | None = None


@dataclass(slots=True)
class _RequestState:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: RequestParams
    stream: bool
    prompt_index: int
    metrics: RequestMetrics
    completions: list[_Completion]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    embedding: bytes | None = None


@dataclass(slots=True)
class Processed:
    """What a step's events came to.

    outputs   to pass on
    stopped   sequences (request id, index) that the engine must ``finish``
    began     requests that got their first token
    ended     requests whose last completion has ended
    gaps      seconds between what each completion got and what it got before
    """

    outputs: list[RequestOutput] = field(default_factory=list)
    stopped: list[tuple[str, int]] = field(default_factory=list)
    began: list[RequestMetrics] = field(default_factory=list)
    ended: list[RequestMetrics] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    num_tokens: int = 0


class OutputProcessor:
    """Holds the state of every request in flight. ``tokenizer`` may be None if nothing is to be detokenized."""

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer
        self._states: dict[str, _RequestState] = {}
        self._decode_one: Callable[[list[int]], str] | None = None
        if tokenizer is not None:
            self._decode_one = token_decoder(tokenizer, skip_special_tokens=False)

    def add(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: RequestParams,
        *,
        prompt: str | None = None,
        stream: bool = False,
        prompt_index: int = 0,
    ) -> RequestMetrics:
        """Expect events for ``request_id``. With ``stream`` each step gives what is new; else only the end.

        What is returned goes on to tell how far the request has got.
        """
        completions = []  # of a beam search they come at the end, of a pooled prompt never
        if isinstance(params, SamplingParams):
            completions = [
                _Completion(i, self._new_text(prompt_token_ids, params)) for i in range(params.num_sequences)
            ]
        metrics = RequestMetrics(time.monotonic(), len(prompt_token_ids))
        self._states[request_id] = _RequestState(
            request_id=request_id,
            prompt=prompt,
            prompt_token_ids=prompt_token_ids,
            params=params,
            stream=stream,
            prompt_index=prompt_index,
            metrics=metrics,
            completions=completions,
        )
        return metrics

    def discard(self, request_id: str, reason: str = "abort") -> RequestMetrics | None:
        """Forget a request that will not be finished, and say how far it got; None for an unknown id."""
        state = self._states.pop(request_id, None)
        if state is None:
            return None
        state.metrics.finished_time = time.monotonic()
        state.metrics.finish_reasons = [c.finish_reason or reason for c in state.completions] or [reason]
        return state.metrics

    def process(self, events: list[Event]) -> Processed:
        """Digest one step's events. Events of requests and completions that have ended are ignored.

        There are such: the tokens of a step that was in flight when a stop string ended the sequence.
        """
        done = Processed()
        touched: dict[str, set[int]] = {}
        now = time.monotonic()
        for event in events:
            state = self._states.get(event.request_id)
            if state is None:
                continue
            metrics = state.metrics
            if event.scheduled_time is not None:
                metrics.scheduled_time, metrics.num_cached_tokens = event.scheduled_time, event.num_cached_tokens
            metrics.num_draft_tokens += event.num_drafted
            metrics.num_accepted_tokens += event.num_accepted
            waited, tokens_before = metrics.first_token_time is None, metrics.num_generation_tokens
            if event.beams is not None:
                self._take_beams(state, event, now)
                touched[event.request_id] = set(range(len(state.completions)))
            elif isinstance(state.params, PoolingParams):
                state.embedding, metrics.finish_reasons = event.embedding, [event.finish_reason or "stop"]
                metrics.first_token_time = metrics.last_token_time = now
                touched[event.request_id] = set()
            elif state.completions[event.index].finish_reason is None:
                self._take(state, event, now, done)
                touched.setdefault(event.request_id, set()).add(event.index)
            done.num_tokens += metrics.num_generation_tokens - tokens_before
            if waited and metrics.first_token_time is not None:
                done.began.append(metrics)
        for request_id, indices in touched.items():
            state = self._states[request_id]
            finished = all(c.finish_reason is not None for c in state.completions)
            if finished:
                state.metrics.finished_time = now
                state.metrics.finish_reasons += [c.finish_reason for c in state.completions if c.finish_reason]
                done.ended.append(state.metrics)
                del self._states[request_id]
            if state.stream:
                outputs = [self._delta(state, state.completions[i]) for i in sorted(indices)]
            elif finished:
                outputs = self._final(state)
            else:
                continue
            done.outputs.append(self._output(state, outputs, finished))
        return done

    def _new_text(self, prompt_ids: list[int], params: SamplingParams | BeamSearchParams) -> CompletionText | None:
        """The text of a new completion, or None where no text is wanted."""
        wanted = isinstance(params, BeamSearchParams) or params.detokenize
        if self._tokenizer is None and wanted and not isinstance(params, BeamSearchParams):
            raise CheckpointError(
                "tokenizer", None, "the model has no tokenizer, so no text can be made",
                "Name one with tokenizer=…, or set detokenize=False",
            )  # fmt: skip
        if self._tokenizer is None or not wanted:
            return None
        detokenizer = Detokenizer(self._tokenizer, prompt_ids, skip_special_tokens=params.skip_special_tokens)
        if isinstance(params, BeamSearchParams):
            return CompletionText(detokenizer)
        return CompletionText(
            detokenizer,
            stop=tuple(params.stop or ()),
            include_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
        )

    def _take(self, state: _RequestState, event: Event, now: float, done: Processed) -> None:
        """Add an event to its completion, which a stop string may end before the engine does."""
        if event.prompt_logprobs is not None:
            state.prompt_logprobs = [
                None if p is None else logprob_dict(p, self._decode_one) for p in event.prompt_logprobs
            ]
        completion = state.completions[event.index]
        assert isinstance(state.params, SamplingParams)
        if event.token_ids:
            state.metrics.first_token_time = state.metrics.first_token_time or now
            state.metrics.last_token_time = now
            if completion.last_token_time is not None:
                done.gaps.append(now - completion.last_token_time)
            completion.last_token_time = now
        for i, token in enumerate(event.token_ids):
            completion.token_ids.append(token)
            completion.drafted.append(i < event.num_accepted)  # accepted drafts come before the target's own token
            state.metrics.num_generation_tokens += 1
            if event.logprobs is not None:
                self._add_logprob(completion, event.logprobs[i])
            # A stop token ends the text before itself, just as a stop string does.
            ends = event.finish_reason == "stop" and i == len(event.token_ids) - 1
            if completion.text is None or (ends and not state.params.include_stop_str_in_output):
                continue
            stop = completion.text.push(token)
            if stop is not None:
                completion.finish_reason, completion.stop_reason = "stop", stop
                if event.finish_reason is None:
                    done.stopped.append((event.request_id, event.index))
                return
        completion.finish_reason, completion.stop_reason = event.finish_reason, event.stop_reason
        completion.error = event.error

    def _add_logprob(self, completion: _Completion, entry: plan.Logprobs) -> None:
        completion.cumulative_logprob += entry.logprobs[0]
        completion.logprobs.append(logprob_dict(entry, self._decode_one))

    def _take_beams(self, state: _RequestState, event: Event, now: float) -> None:
        """The single, last event of a beam search: every hypothesis becomes a completion, best first."""
        assert isinstance(state.params, BeamSearchParams)
        state.metrics.first_token_time = state.metrics.last_token_time = now
        for i, beam in enumerate(event.beams or ()):
            text = self._new_text(state.prompt_token_ids, state.params)
            if text is not None:
                for token in beam.token_ids[:-1] if beam.finish_reason == "stop" else beam.token_ids:
                    text.push(token)
            state.completions.append(
                _Completion(
                    i,
                    text,
                    beam.token_ids,
                    cumulative_logprob=beam.cumulative_logprob,
                    finish_reason=beam.finish_reason,
                )
            )
            state.metrics.num_generation_tokens += len(beam.token_ids)

    def _delta(self, state: _RequestState, completion: _Completion) -> CompletionOutput:
        finished = completion.finish_reason is not None
        text = "" if completion.text is None else completion.text.take(final=finished)
        output = self._completion_output(state, completion, text, completion.given)
        completion.given = len(completion.token_ids)
        return output

    def _final(self, state: _RequestState) -> list[CompletionOutput]:
        """All completions; with best_of, the n likeliest of them, renumbered."""
        chosen = state.completions
        params = state.params
        if isinstance(params, SamplingParams) and params.num_sequences > params.n:
            chosen = sorted(chosen, key=lambda c: -c.cumulative_logprob)[: params.n]
        outputs = []
        for index, completion in enumerate(chosen):
            text = "" if completion.text is None else completion.text.take(final=True)
            output = self._completion_output(state, completion, text, 0)
            output.index = index
            outputs.append(output)
        return outputs

    def _completion_output(
        self, state: _RequestState, completion: _Completion, text: str, start: int
    ) -> CompletionOutput:
        params = state.params
        asked = isinstance(params, SamplingParams) and params.logprobs is not None
        return CompletionOutput(
            index=completion.index,
            text=text,
            token_ids=completion.token_ids[start:],
            cumulative_logprob=completion.cumulative_logprob if asked or isinstance(params, BeamSearchParams) else None,
            logprobs=completion.logprobs[start:] if asked else None,
            drafted=completion.drafted[start:],
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
            error=completion.error,
        )

    def _output(self, state: _RequestState, outputs: list[CompletionOutput], finished: bool) -> RequestOutput:
        return RequestOutput(
            request_id=state.request_id,
            prompt=state.prompt,
            prompt_token_ids=state.prompt_token_ids,
            prompt_logprobs=state.prompt_logprobs,
            outputs=outputs,
            finished=finished,
            metrics=state.metrics,
            num_cached_tokens=state.metrics.num_cached_tokens,
            prompt_index=state.prompt_index,
            embedding=state.embedding,
        )
