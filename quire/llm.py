"""``LLM``: the engine in a Python program. Prompts in, completions out.

It owns a tokenizer, an engine and the processor that turns the engine's events into text. All of its ways of asking
(``generate``, ``chat``, ``stream``, ``beam_search``, ``embed``) prepare requests, check every one of them before any is
admitted, and then take turns at one loop: step the engine, put each output into the box of the call it belongs to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from threading import RLock
from types import TracebackType
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from quire import backend
from quire.assets import load_assets
from quire.interrupts import interrupts_wait
from quire.prompts import Message, Prepared, Prompt, as_list, located, per_prompt, prepare
from quire.reference.config import EngineConfig
from quire.reference.control.errors import RequestError
from quire.reference.control.params import BeamSearchParams, PoolingParams, RequestParams, SamplingParams
from quire.reference.control.request import Event, SchedulerStats
from quire.reference.output_processor import OutputProcessor
from quire.reference.outputs import (
    BeamSearchOutput,
    BeamSearchSequence,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    RequestOutput,
)
from quire.reference.tokenizer import bad_words_token_ids, encode, render_chat


class LLM:
    """An engine with a model in it.

    ``model`` is a zoo name ("pocket", the model that ships with quire), a local folder, or a Hugging Face hub name;
    all other arguments are those of ``EngineConfig``. Threads that share one wait for each other's steps. ``close`` (or
    ``with``) writes out a trace, if one is recorded; nothing else needs closing.
    """

    def __init__(self, model: str = "pocket", **engine_args: Any) -> None:
        self.config = EngineConfig(model=model, **engine_args)
        self.assets = load_assets(self.config)
        self.engine = backend.build_engine(
            self.config,
            self.assets.path,
            eos_token_ids=self.assets.eos_token_ids,
            tokenizer=self.assets.get_tokenizer,
        )
        self._processor = OutputProcessor(self.assets.tokenizer)
        self._turn = RLock()  # whoever uses the engine has it; again within a step if a stream is let go of there
        self._boxes: dict[str, deque[RequestOutput]] = {}  # request id -> the outputs of the call it belongs to

    # --- asking -------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts; the outputs are in the order of the prompts.

        prompts          a text, token ids, ``{"prompt": …}`` or ``{"prompt_token_ids": …}`` (either with a
                         ``"cache_salt"``), or a list of these
        sampling_params  for all of them, or one per prompt; None = ``get_default_sampling_params()``
        use_tqdm         show a progress bar when it takes more than a second
        priority         for all, or one per prompt; matters with scheduling_policy="priority", lower runs first

        Raises ``RequestError`` before anything runs if any prompt or parameter is unusable.
        """
        requests = self._prepare(as_list(prompts), sampling_params, priority)
        return self._run_to_end(requests, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] | None = None,
        tools: Sequence[Any] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of several.

        tools                   descriptions of functions that the model may call, for the template
        chat_template           Jinja source, instead of the tokenizer's own
        add_generation_prompt   let the assistant speak next; or, instead, continue_final_message: go on with its last
        chat_template_kwargs    further variables for the template
        """
        if isinstance(messages, Mapping | str) or not isinstance(messages, Sequence) or not messages:
            raise RequestError("messages", messages, "no conversation", "Give a list of messages")
        conversations: Sequence[Any] = [messages] if isinstance(messages[0], Mapping) else messages
        template_args = {
            "tools": tools,
            "chat_template": chat_template,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            "continue_final_message": continue_final_message,
            "chat_template_kwargs": chat_template_kwargs,
        }
        prompts = [self.render_chat(c, **template_args) for c in conversations]
        return self._run_to_end(self._prepare(prompts, sampling_params, priority), use_tqdm)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] | None = None,
    ) -> Iterator[RequestOutput]:
        """Complete prompts, yielding what is new as it comes: ``text``, ``token_ids`` and ``logprobs`` are increments.

        Outputs of several prompts come mixed, told apart by ``prompt_index``, and completions by their ``index``.
        Nothing is admitted before the first output is asked for. Closing the iterator early (``break``, then letting
        go of it, or ``close()``) aborts what is still running.
        """
        requests = self._prepare(as_list(prompts), sampling_params, priority)
        for request in requests:
            params = request.params
            if isinstance(params, SamplingParams) and params.num_sequences > params.n:
                raise RequestError(
                    "best_of", params.best_of, "which completions are best is known only at the end",
                    "Use generate(), or leave best_of out",
                )  # fmt: skip
        return self._run(requests, stream=True)

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, *, use_tqdm: bool = False
    ) -> list[BeamSearchOutput]:
        """The ``beam_width`` likeliest continuations of each prompt that were found, best first."""
        if not isinstance(params, BeamSearchParams):
            raise RequestError("params", params, "no beam search parameters", "Give a BeamSearchParams")
        requests = self._prepare(as_list(prompts), params, None)
        outputs = self._run_to_end(requests, use_tqdm)
        return [self._beams(output, params) for output in outputs]

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """A vector for each prompt, in ``output.outputs.embedding``; a prompt may fill the whole context.

        pooling_params  for all of them, or one per prompt; None = ``PoolingParams()``. The rest is as in ``generate``.
        """
        requests = self._prepare(as_list(prompts), pooling_params, priority, pooling=True)
        return [_embedding(output) for output in self._run_to_end(requests, use_tqdm)]

    def render_chat(self, messages: Sequence[Message], **template_args: Any) -> dict[str, Any]:
        """A conversation as a prompt for ``generate`` or ``stream``: its text and its token ids.

        ``template_args`` are those of ``chat``. The template writes the special tokens itself, so none are added.
        """
        tokenizer = self.get_tokenizer()
        text = render_chat(tokenizer, messages, **template_args)
        return {"prompt": text, "prompt_token_ids": encode(tokenizer, text, add_special_tokens=False)}

    # --- looking ------------------------------------------------------------------------------------------------------

    def get_tokenizer(self) -> Any:
        """The model's tokenizer (transformers'). Raises ``CheckpointError`` if it has none."""
        return self.assets.get_tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's generation_config.json asks for; quire's own with generation_config="none"."""
        return self.assets.default_sampling_params()

    def stats(self) -> SchedulerStats:
        """Running and waiting requests, KV blocks, prefix hits, preemptions: a snapshot with counts since the start."""
        with self._turn:
            return self.engine.stats()

    def reset_prefix_cache(self) -> None:
        """Forget the cached beginnings of earlier prompts."""
        with self._turn:
            self.engine.reset_prefix_cache()

    def close(self) -> None:
        """Abort what runs (its streams end with finish_reason "abort") and write out the trace."""
        with self._turn:
            for request_id in list(self._boxes):
                self._deliver(self.engine.abort_request(request_id))
            self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- preparing ----------------------------------------------------------------------------------------------------

    def _prepare(
        self, prompts: Sequence[Prompt], params: Any, priority: Any, *, pooling: bool = False
    ) -> list[Prepared]:
        """Every prompt with its parameters, checked as far as possible without admitting any."""
        name = "pooling_params" if pooling else "sampling_params"
        default = PoolingParams if pooling else self.get_default_sampling_params
        all_params = per_prompt(name, params, len(prompts), default)
        priorities = per_prompt("priority", priority, len(prompts), lambda: 0)
        resolved: dict[int, RequestParams] = {}  # parameters shared by many prompts are worked on once
        requests = []
        for i, (prompt, own) in enumerate(zip(prompts, all_params)):
            try:
                if isinstance(own, PoolingParams) != pooling:
                    kind = "PoolingParams" if pooling else "SamplingParams"
                    raise RequestError(name, own, f"not a {kind}", f"Give a {kind}")
                if id(own) not in resolved:
                    resolved[id(own)] = self._resolve_bad_words(own)
                request = prepare(prompt, resolved[id(own)], priorities[i], self.get_tokenizer)
                self.engine.check(request.token_ids, request.params, request.priority)
                if self.assets.tokenizer is None and getattr(own, "detokenize", False):
                    self.get_tokenizer()  # raises: text is wanted and cannot be made
            except RequestError as error:
                raise located(error, i, len(prompts)) from None
            requests.append(request)
        return requests

    def _resolve_bad_words(self, params: Any) -> Any:
        if not isinstance(params, SamplingParams) or not params.bad_words:
            return params
        spelled = bad_words_token_ids(self.get_tokenizer(), params.bad_words)
        return replace(params, bad_words_token_ids=(*params.bad_words_token_ids, *spelled))

    # --- running ------------------------------------------------------------------------------------------------------

    def _run_to_end(self, requests: list[Prepared], use_tqdm: bool) -> list[RequestOutput]:
        outputs: list[RequestOutput | None] = [None] * len(requests)
        tokens = 0
        bar = tqdm(total=len(requests), unit="prompt", desc="Prompts", disable=not use_tqdm, delay=1)
        with bar, closing(self._run(requests, stream=False)) as running:
            for output in running:
                outputs[output.prompt_index] = output
                tokens += sum(len(c.token_ids) for c in output.outputs)
                if output.embedding is not None:
                    tokens += len(output.prompt_token_ids)
                bar.update()
                bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f} tok/s", refresh=False)
        return [output for output in outputs if output is not None]

    def _run(self, requests: list[Prepared], *, stream: bool) -> Generator[RequestOutput]:
        """Admit requests and yield their outputs until all have ended. Left early, by whatever way, it aborts them."""
        box: deque[RequestOutput] = deque()
        open_ids: dict[str, None] = {}
        try:
            with self._turn, interrupts_wait():  # else a request could be in the engine and not in open_ids
                for i, request in enumerate(requests):
                    try:
                        open_ids[self._submit(request, i, stream, box)] = None
                    except RequestError as error:
                        raise located(error, i, len(requests)) from None
            while open_ids:
                while box:
                    output = box.popleft()
                    if output.finished:
                        del open_ids[output.request_id]
                    yield output
                if open_ids:
                    self._step(box, open_ids)
        finally:
            self._abort(list(open_ids))

    def _submit(self, request: Prepared, index: int, stream: bool, box: deque[RequestOutput]) -> str:
        request_id = self.engine.add_request(
            request.token_ids, request.params, priority=request.priority, cache_salt=request.cache_salt
        )
        self._boxes[request_id] = box
        self._processor.add(
            request_id, request.token_ids, request.params, prompt=request.prompt, stream=stream, prompt_index=index
        )
        return request_id

    def _step(self, box: deque[RequestOutput], open_ids: Mapping[str, None]) -> None:
        """One step of the engine, for whichever calls have requests in it; none if another's has filled ``box``."""
        with self._turn, interrupts_wait():
            if box:
                return
            if not self.engine.has_unfinished():
                raise RuntimeError(f"requests that somebody else has ended: {', '.join(open_ids)}")
            self._deliver(self.engine.step())

    def _deliver(self, events: list[Event]) -> None:
        """Put what the events make of each request into the box of its call."""
        done = self._processor.process(events)
        for request_id, index in done.stopped:
            self.engine.finish(request_id, index)
        for output in done.outputs:
            box = self._boxes.pop(output.request_id) if output.finished else self._boxes[output.request_id]
            box.append(output)

    def _abort(self, request_ids: Sequence[str]) -> None:
        with self._turn:
            for request_id in request_ids:
                self.engine.abort_request(request_id)
                self._processor.discard(request_id)
                self._boxes.pop(request_id, None)

    def _beams(self, output: RequestOutput, params: BeamSearchParams) -> BeamSearchOutput:
        """The completions of a beam search in vLLM's form, which repeats the prompt."""
        prompt = output.prompt
        if prompt is None and self.assets.tokenizer is not None:
            prompt = self.assets.tokenizer.decode(
                output.prompt_token_ids, skip_special_tokens=params.skip_special_tokens
            )
        return BeamSearchOutput(
            [
                BeamSearchSequence(
                    tokens=[*output.prompt_token_ids, *c.token_ids],
                    text=(prompt or "") + c.text,
                    cum_logprob=c.cumulative_logprob or 0.0,
                    finish_reason=c.finish_reason,
                    output_token_ids=c.token_ids,
                    output_text=c.text,
                )
                for c in output.outputs
            ]
        )


def _embedding(output: RequestOutput) -> EmbeddingRequestOutput:
    """The output of a request with pooling parameters in vLLM's form."""
    assert output.embedding is not None
    return EmbeddingRequestOutput(
        request_id=output.request_id,
        prompt=output.prompt,
        prompt_token_ids=output.prompt_token_ids,
        outputs=EmbeddingOutput(np.frombuffer(output.embedding, "<f4").tolist()),
        num_cached_tokens=output.num_cached_tokens,
    )
