"""/v1/chat/completions: a conversation, answered."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.reference.control.errors import RequestError
from quire.reference.control.params import BeamSearchParams, SamplingParams
from quire.reference.control.structured import StructuredOutputsParams
from quire.reference.outputs import CompletionOutput, RequestOutput
from quire.server.client import Generation
from quire.server.conversation import Reader, ToolUse, form, functions_of, rendered, tool_use, wanted_form
from quire.server.parsers import Delta, Parsed
from quire.server.protocol.chat import ChatCompletion, ChatRequest, NamedToolChoice
from quire.server.protocol.common import documented, logprobs_json, prompt_logprobs_json, usage
from quire.server.state import ServerState
from quire.server.stream import EventStream, answer, event

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    responses=documented(ChatCompletion, "the answers, or a stream of their parts", streams=True),
)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    call = Call(ServerState.of(request), body)
    return await call.stream() if body.stream else await answer(request, call.whole())


class Call:
    """One call of the endpoint: its prompt, and how its output becomes JSON."""

    def __init__(self, state: ServerState, body: ChatRequest) -> None:
        self.state = state
        self.body = body
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": state.check_model(body.model),
        }
        self.tools = self._tools()
        self.form = form(state, self.tools, self._structured())
        self.params = self._params()
        width = self.params.beam_width if isinstance(self.params, BeamSearchParams) else self.params.n
        self.choices = [Reader(self.form.new_parser(), self.tools.parallel) for _ in range(width)]
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0
        self.drafts = (0, 0)

    def _tools(self) -> ToolUse:
        body, choice = self.body, self.body.tool_choice
        functions = functions_of(body.tools)
        if isinstance(choice, NamedToolChoice):
            return tool_use(functions, None, named=choice.function.name, parallel=body.parallel_tool_calls)
        return tool_use(functions, choice, named=None, parallel=body.parallel_tool_calls)

    def _structured(self) -> StructuredOutputsParams | None:
        """The form of the answer, by response_format or by one of vLLM's names."""
        wanted, own = self.body.response_format, self.body.structured()
        if wanted is None:
            return own
        if wanted.type == "json_schema" and wanted.json_schema is None:
            raise RequestError("response_format.json_schema", None, "missing", "Give the schema's name and schema")
        schema = None if wanted.json_schema is None else wanted.json_schema.schema_
        return wanted_form("response_format", wanted.type, schema, own)

    def _params(self) -> SamplingParams | BeamSearchParams:
        body = self.body
        if body.stream and body.use_beam_search:
            raise RequestError(
                "use_beam_search", True, "which answers are best is known only at the end", "Leave it or stream out"
            )
        if not body.stream and body.stream_options is not None:
            raise RequestError("stream_options", True, "stream is not true", "Set stream, or leave stream_options out")
        if body.top_logprobs is not None and not body.logprobs:
            raise RequestError("top_logprobs", body.top_logprobs, "logprobs is not true", "Set logprobs to true")
        limits = (body.max_completion_tokens, body.max_tokens)
        if None not in limits and limits[0] != limits[1]:
            raise RequestError(
                "max_tokens", limits[1], f"max_completion_tokens={limits[0]} is given too", "Give one of the two"
            )
        return body.engine_params(
            self.state.engine.assets.defaults,
            max_tokens=limits[1] if limits[0] is None else limits[0],
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            **self.form.fixed(),
        )

    async def start(self, *, stream: bool) -> Generation:
        """Render the conversation and hand it to the engine."""
        body = self.body
        text, token_ids = await rendered(
            self.state,
            body.messages,
            self.tools,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            reasoning_effort=body.reasoning_effort,
            verbosity=body.verbosity,
            chat_template_kwargs=body.chat_template_kwargs,
        )
        self.prompt_tokens = len(token_ids)
        return await self.state.add(
            token_ids,
            self.state.with_bad_words(self.params),
            prompt=text,
            stream=stream,
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
            names=self._names(),
        )

    def _names(self) -> dict[str, str]:
        """What the client calls that which the engine checks: the prompt, and the form of the answer."""
        names = {"prompt_token_ids": "messages", **self.body.structured_names()}
        if self.tools.forced:
            names["structured_outputs.json"] = "tools"
        elif self.body.response_format is not None and self.body.response_format.type != "text":
            names["structured_outputs.json"] = "response_format"
        return names

    # --- answers ------------------------------------------------------------------------------------------------------

    async def whole(self) -> dict[str, Any]:
        """The response without streaming."""
        with await self.start(stream=False) as generation:
            output = await generation.__anext__()
        choices = []
        for completion in output.outputs:
            choice = self.choices[completion.index]
            choice.read(completion)
            entry = {
                "index": completion.index,
                "message": self._message(choice.parsed),
                "logprobs": self._logprobs(completion),
                "finish_reason": finish_reason(completion, choice.parsed),
                "stop_reason": completion.stop_reason,
            }
            if self.body.return_token_ids:
                entry["token_ids"] = completion.token_ids
            choices.append(entry)
        self._count(output)
        response: dict[str, Any] = {**self.head, "choices": choices, "usage": self._usage()}
        return response | self._about_prompt(output)

    async def stream(self) -> EventStream:
        """The response as events."""
        generation = await self.start(stream=True)
        return EventStream(self._events(generation), [generation])

    async def _events(self, generation: Generation) -> AsyncIterator[bytes]:
        options = self.body.stream_options
        with_usage = options is not None and bool(options.include_usage)
        running_usage = options is not None and bool(options.continuous_usage_stats)
        for index, _ in enumerate(self.choices):
            yield event(
                self._chunk(index, {"role": "assistant", "content": ""}) | ({"usage": None} if with_usage else {})
            )
        first = True
        async for output in generation:
            self._count(output)
            extra = {"usage": self._usage()} if running_usage else {"usage": None} if with_usage else {}
            if first:
                extra |= self._about_prompt(output)
            for completion in output.outputs:
                for chunk in self._chunks(completion):
                    yield event(chunk | extra)
                    extra.pop("prompt_logprobs", None), extra.pop("prompt_token_ids", None)
                    first = False
        if with_usage:
            yield event({**self.head, "choices": [], "usage": self._usage()})

    def _chunks(self, completion: CompletionOutput) -> list[dict[str, Any]]:
        """What is new of one answer. Log-probabilities and token ids go with the first chunk, the end with the last."""
        choice = self.choices[completion.index]
        deltas = [self._delta(delta) for delta in choice.read(completion)]
        ended = completion.finish_reason is not None
        logprobs = self._logprobs(completion)
        wanted = (logprobs is not None and logprobs["content"]) or (self.body.return_token_ids and completion.token_ids)
        if not deltas and (ended or wanted):
            deltas = [{}]
        chunks = [self._chunk(completion.index, delta) for delta in deltas]
        if chunks and logprobs is not None:
            chunks[0]["choices"][0]["logprobs"] = logprobs
        if chunks and self.body.return_token_ids:
            chunks[0]["choices"][0]["token_ids"] = completion.token_ids
        if ended:
            if deltas[-1]:
                chunks.append(self._chunk(completion.index, {}))
            last = chunks[-1]["choices"][0]
            last["finish_reason"] = finish_reason(completion, choice.parsed)
            last["stop_reason"] = completion.stop_reason
        return chunks

    def _chunk(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {
            **self.head,
            "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}],
        }

    # --- parts --------------------------------------------------------------------------------------------------------

    def _delta(self, delta: Delta) -> dict[str, Any]:
        """A delta as OpenAI sends it: a call's first piece has its id and name."""
        if delta.call is not None:
            function: dict[str, Any] = {"arguments": delta.arguments}
            call: dict[str, Any] = {"index": delta.call, "function": function}
            if delta.name is not None:
                call |= {"id": self.form.new_call_id(), "type": "function"}
                function["name"] = delta.name
            return {"tool_calls": [call]}
        return {"reasoning_content": delta.reasoning} if delta.reasoning else {"content": delta.content}

    def _message(self, parsed: Parsed) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content, "refusal": None}
        if parsed.tool_calls:
            message["content"] = parsed.content or None
            message["tool_calls"] = [
                {
                    "id": self.form.new_call_id(),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in parsed.tool_calls
            ]
        if parsed.reasoning:
            message["reasoning_content"] = parsed.reasoning
        return message

    def _logprobs(self, completion: CompletionOutput) -> dict[str, Any] | None:
        """OpenAI's newer form: an object per token, with the likeliest ones in it."""
        if completion.logprobs is None:
            return None
        tokenizer = self.state.engine.assets.get_tokenizer()
        return {"content": logprobs_json(tokenizer, completion, self.body.top_logprobs or 0), "refusal": None}

    def _about_prompt(self, output: RequestOutput) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.body.prompt_logprobs is not None:
            found["prompt_logprobs"] = prompt_logprobs_json(output)
        if self.body.return_token_ids:
            found["prompt_token_ids"] = output.prompt_token_ids
        return found

    def _count(self, output: RequestOutput) -> None:
        self.completion_tokens += sum(len(c.token_ids) for c in output.outputs)
        self.cached_tokens = max(self.cached_tokens, output.num_cached_tokens)
        self.drafts = (output.metrics.num_draft_tokens, output.metrics.num_accepted_tokens)

    def _usage(self) -> dict[str, Any]:
        return usage(self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.drafts)


def finish_reason(completion: CompletionOutput, parsed: Parsed) -> str | None:
    """OpenAI's word for why an answer ended."""
    return "tool_calls" if parsed.tool_calls and completion.finish_reason == "stop" else completion.finish_reason
