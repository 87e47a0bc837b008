"""/v1/completions: one or several prompts, continued."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.reference.control.errors import RequestError
from quire.reference.control.params import BeamSearchParams, SamplingParams
from quire.reference.outputs import CompletionOutput, Logprob, RequestOutput
from quire.server.client import Generation
from quire.server.errors import place
from quire.server.prompts import completion_prompts
from quire.server.protocol.common import documented, prompt_logprobs_json, usage
from quire.server.protocol.completion import Completion, CompletionRequest
from quire.server.state import ServerState
from quire.server.stream import EventStream, all_admitted, answer, event, final_outputs, merged_outputs

router = APIRouter()


@router.post(
    "/v1/completions", responses=documented(Completion, "the completions, or a stream of their parts", streams=True)
)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue texts or token ids."""
    state = ServerState.of(request)
    call = Call(state, body)
    return await call.stream() if body.stream else await answer(request, call.whole())


class Call:
    """One call of the endpoint: its prompts, and how their outputs become JSON."""

    def __init__(self, state: ServerState, body: CompletionRequest) -> None:
        self.state = state
        self.body = body
        self.model = state.check_model(body.model)
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.model,
        }
        self.only_prompt = bool(body.echo) and body.max_tokens == 0  # its one token is computed and left out
        self.params = self._params()
        width = self.params.beam_width if isinstance(self.params, BeamSearchParams) else self.params.n
        self.per_prompt = width
        self.completion_tokens = 0
        self.cached_tokens: dict[int, int] = {}  # by the number of the prompt
        self.drafts: dict[int, tuple[int, int]] = {}  # the same: drafts verified, and accepted

    def _params(self) -> SamplingParams | BeamSearchParams:
        body = self.body
        if body.stream:
            for name in ("best_of", "use_beam_search"):
                if getattr(body, name) and (name != "best_of" or body.best_of != (body.n or 1)):
                    raise RequestError(
                        name, getattr(body, name), "which completions are best is known only at the end",
                        f"Leave {name} or stream out",
                    )  # fmt: skip
        elif body.stream_options is not None:
            raise RequestError("stream_options", True, "stream is not true", "Set stream, or leave stream_options out")
        if body.max_tokens == 0 and not body.echo:
            raise RequestError("max_tokens", 0, "nothing to generate", "Give at least 1, or set echo")
        fixed: dict[str, Any] = {}
        if body.best_of is not None:
            fixed["best_of"] = body.best_of
        if body.echo and body.logprobs is not None:
            fixed["prompt_logprobs"] = body.logprobs
        return body.engine_params(
            self.state.engine.assets.defaults, max_tokens=body.max_tokens or 1, logprobs=body.logprobs, **fixed
        )

    async def start(self, *, stream: bool) -> list[Generation]:
        """Hand every prompt to the engine. If one is refused, none runs."""
        body = self.body
        self.prompts = await completion_prompts(
            self.state.engine.assets, body.prompt, add_special_tokens=body.add_special_tokens is not False
        )
        self.params = self.state.with_bad_words(self.params)
        return await all_admitted(
            self.state.add(
                token_ids,
                self.params,
                prompt=text,
                stream=stream,
                priority=body.priority or 0,
                cache_salt=body.cache_salt,
                names={"prompt_token_ids": place("prompt", number, len(self.prompts)), **body.structured_names()},
            )
            for number, (text, token_ids) in enumerate(self.prompts)
        )

    # --- answers ------------------------------------------------------------------------------------------------------

    async def whole(self) -> dict[str, Any]:
        """The response without streaming."""
        choices = []
        for number, output in enumerate(await final_outputs(await self.start(stream=False))):
            self._count(number, output)
            choices += [self._choice(number, output, c, first=True, last=True) for c in output.outputs]
        return {**self.head, "choices": choices, "usage": self._usage()}

    async def stream(self) -> EventStream:
        """The response as events."""
        generations = await self.start(stream=True)
        return EventStream(self._events(generations), generations)

    async def _events(self, generations: list[Generation]) -> AsyncIterator[bytes]:
        options = self.body.stream_options
        with_usage = options is not None and bool(options.include_usage)
        running_usage = options is not None and bool(options.continuous_usage_stats)
        begun: set[int] = set()
        offsets: dict[int, int] = {}
        async for number, output in merged_outputs(generations):
            self._count(number, output)
            for completion in output.outputs:
                index = number * self.per_prompt + completion.index
                choice = self._choice(
                    number,
                    output,
                    completion,
                    first=index not in begun,
                    last=completion.finish_reason is not None,
                    offset=offsets.get(index, 0),
                )
                offsets[index] = offsets.get(index, 0) + len(choice["text"])
                begun.add(index)
                chunk = {**self.head, "choices": [choice]}
                if running_usage:
                    chunk["usage"] = self._usage()
                elif with_usage:
                    chunk["usage"] = None
                yield event(chunk)
        if with_usage:
            yield event({**self.head, "choices": [], "usage": self._usage()})

    def _count(self, number: int, output: RequestOutput) -> None:
        if not self.only_prompt:
            self.completion_tokens += sum(len(c.token_ids) for c in output.outputs)
        self.cached_tokens[number] = output.num_cached_tokens
        self.drafts[number] = (output.metrics.num_draft_tokens, output.metrics.num_accepted_tokens)

    def _usage(self) -> dict[str, Any]:
        prompt_tokens = sum(len(token_ids) for _, token_ids in self.prompts)
        drafted, accepted = (sum(counts) for counts in zip((0, 0), *self.drafts.values()))
        return usage(prompt_tokens, self.completion_tokens, sum(self.cached_tokens.values()), (drafted, accepted))

    # --- one choice ---------------------------------------------------------------------------------------------------

    def _choice(
        self,
        number: int,
        output: RequestOutput,
        completion: CompletionOutput,
        *,
        first: bool,
        last: bool,
        offset: int = 0,
    ) -> dict[str, Any]:
        """One completion, or what is new of it: ``first`` brings the echo, ``last`` the finish reason."""
        body = self.body
        text, logprobs, token_ids = completion.text, completion.logprobs, completion.token_ids
        if self.only_prompt:
            text, logprobs, token_ids = "", None if logprobs is None else [], []
        entries: list[dict[int, Logprob] | None] = list(logprobs or [])
        if body.echo and first:
            text = self._prompt_text(number) + text
            entries = [*(output.prompt_logprobs or []), *entries]
        choice: dict[str, Any] = {
            "index": number * self.per_prompt + completion.index,
            "text": text,
            "logprobs": None,
            "finish_reason": ("length" if self.only_prompt else completion.finish_reason) if last else None,
            "stop_reason": completion.stop_reason,
        }
        if body.logprobs is not None:
            ids = [*(output.prompt_token_ids if body.echo and first else ()), *token_ids]
            choice["logprobs"] = self._logprobs(ids, entries, body.logprobs, offset)
        if body.prompt_logprobs is not None and first:
            choice["prompt_logprobs"] = prompt_logprobs_json(output)
        if body.return_token_ids:
            choice["token_ids"] = token_ids
            if first:
                choice["prompt_token_ids"] = output.prompt_token_ids
        return choice

    def _prompt_text(self, number: int) -> str:
        text, token_ids = self.prompts[number]
        return self.state.engine.assets.get_tokenizer().decode(token_ids) if text is None else text

    def _logprobs(
        self, ids: list[int], entries: list[dict[int, Logprob] | None], top: int, offset: int
    ) -> dict[str, Any]:
        """OpenAI's older form: parallel lists. The first token of an echoed prompt has no log-probability."""
        tokens: list[str] = []
        chosen: list[float | None] = []
        likeliest: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token_id, entry in zip(ids, entries):
            own = None if entry is None else entry[token_id]
            token = self.state.token_text(token_id) if own is None else own.decoded_token or ""
            tokens.append(token)
            chosen.append(None if own is None else own.logprob)
            likeliest.append(None if entry is None else {p.decoded_token or "": p.logprob for p in entry.values()})
            offsets.append(offset)
            offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": chosen,
            "top_logprobs": likeliest if top else None,
            "text_offset": offsets,
        }
