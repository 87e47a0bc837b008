"""/v1/responses: an answer as a list of items, and conversations that the server remembers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from quire.reference.control.errors import RequestError
from quire.reference.control.params import BeamSearchParams, SamplingParams
from quire.reference.outputs import RequestOutput
from quire.reference.tokenizer import encode
from quire.server.client import Generation
from quire.server.conversation import Reader, form, rendered, tool_use, wanted_form
from quire.server.errors import named
from quire.server.parsers import PlainParser
from quire.server.protocol.chat import Message
from quire.server.protocol.common import documented, logprobs_json
from quire.server.protocol.responses import (
    Deleted,
    FunctionChoice,
    InputItems,
    InputItemsQuery,
    ResponseObject,
    ResponsesRequest,
    RetrieveQuery,
)
from quire.server.response_items import ends, input_items, messages, new_id, page
from quire.server.response_output import Event, ResponseOutput
from quire.server.response_store import StoredResponse
from quire.server.state import ServerState
from quire.server.stream import EventStream, answer, error_event, event, json_response

router = APIRouter()


@router.post(
    "/v1/responses", responses=documented(ResponseObject, "the response, or a stream of typed events", streams=True)
)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Answer a conversation."""
    call = Call(ServerState.of(request), body)
    return await call.stream() if body.stream else await answer(request, call.whole())


@router.get("/v1/responses/{response_id}", responses=documented(ResponseObject, "the stored response"))
async def retrieve_response(response_id: str, query: Annotated[RetrieveQuery, Query()], request: Request) -> Response:
    """A stored response."""
    return json_response(ServerState.of(request).responses.get(response_id, param="response_id").response)


@router.delete("/v1/responses/{response_id}", responses=documented(Deleted, "it is forgotten"))
async def delete_response(response_id: str, request: Request) -> Response:
    """Forget a stored response."""
    ServerState.of(request).responses.delete(response_id, param="response_id")
    return json_response({"id": response_id, "object": "response", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items", responses=documented(InputItems, "a page of items"))
async def list_input_items(response_id: str, query: Annotated[InputItemsQuery, Query()], request: Request) -> Response:
    """The items that a stored response was made from, those of the responses before it included."""
    stored = ServerState.of(request).responses.get(response_id, param="response_id")
    return json_response(page(stored.items, after=query.after, limit=query.limit, order=query.order))


class Call:
    """One call of the endpoint: its conversation, and how its output becomes a response."""

    def __init__(self, state: ServerState, body: ResponsesRequest) -> None:
        self.state = state
        self.body = body
        self.model = state.check_model(body.model)
        self.id = new_id("resp")
        self.created = int(time.time())
        before: list[dict[str, Any]] = []
        if body.previous_response_id is not None:
            before = state.responses.get(body.previous_response_id, param="previous_response_id").conversation()
        self.items = [*before, *input_items(body.input)]
        self.messages = messages(self.items, len(before))
        functions = [tool.function() for tool in body.tools or []]
        choice, parallel = body.tool_choice, body.parallel_tool_calls
        if isinstance(choice, FunctionChoice):
            self.tools = tool_use(functions, None, named=choice.name, parallel=parallel)
        else:
            self.tools = tool_use(functions, choice, named=None, parallel=parallel)
        wanted = body.text.format if body.text is not None else None
        kind, schema = (None, None) if wanted is None else (wanted.type, wanted.schema_)
        self.form = form(state, self.tools, wanted_form("text.format", kind, schema, body.structured()))
        self.reader = Reader(self.form.new_parser(), self.tools.parallel)
        self.output = ResponseOutput(self.form.new_call_id)
        self.params = self._params()
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0
        self._num_events = 0

    def _params(self) -> SamplingParams | BeamSearchParams:
        body = self.body
        if not body.stream and body.stream_options is not None:
            raise RequestError("stream_options", True, "stream is not true", "Set stream, or leave stream_options out")
        with_logprobs = bool(body.top_logprobs) or "message.output_text.logprobs" in (body.include or ())
        if with_logprobs and not isinstance(self.reader.parser, PlainParser):
            raise RequestError(
                "top_logprobs" if body.top_logprobs else "include", body.top_logprobs or body.include,
                "which tokens are the text's is unknown where calls or reasoning are told from it",
                "Leave it out, or ask /v1/chat/completions",
            )  # fmt: skip
        with named({"max_tokens": "max_output_tokens"}):
            return body.engine_params(
                self.state.engine.assets.defaults,
                max_tokens=body.max_output_tokens,
                logprobs=(body.top_logprobs or 0) if with_logprobs else None,
                **self.form.fixed(),
            )

    async def start(self, *, stream: bool) -> Generation:
        """Render the conversation and hand it to the engine."""
        body = self.body
        with named({"messages": "input"}):
            text, token_ids = await self._prompt()
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
        """What the client calls that which the engine checks."""
        names = {"prompt_token_ids": "input", "max_tokens": "max_output_tokens", **self.body.structured_names()}
        if self.tools.forced:
            names["structured_outputs.json"] = "tools"
        elif self.body.text is not None and self.body.text.format is not None:
            names["structured_outputs.json"] = "text.format"
        return names

    async def _prompt(self) -> tuple[str, list[int]]:
        """The whole conversation; with truncation its latest turns, as many as leave room for the answer."""
        prompt = await self._render(self.messages)
        if self.body.truncation != "auto":
            return prompt
        context = self.state.engine.facts().max_model_len
        room = context - min(self.body.max_output_tokens or 1, context // 2)
        shorter = ends(self.messages)
        if len(prompt[1]) <= room or not shorter:
            return prompt
        first, last = 0, len(shorter) - 1  # the longest that fits is among these; the last one, if none does
        while first < last:
            middle = (first + last) // 2
            _, token_ids = await self._render(shorter[middle])
            first, last = (first, middle) if len(token_ids) <= room else (middle + 1, last)
        return await self._render(shorter[first])

    async def _render(self, turns: list[Message]) -> tuple[str, list[int]]:
        body = self.body
        instructions = [] if body.instructions is None else [Message(role="system", content=body.instructions)]
        return await rendered(
            self.state,
            [*instructions, *turns],
            self.tools,
            reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
            verbosity=None if body.text is None else body.text.verbosity,
            chat_template_kwargs=body.chat_template_kwargs,
        )

    # --- answers ------------------------------------------------------------------------------------------------------

    async def whole(self) -> dict[str, Any]:
        """The response without streaming."""
        with await self.start(stream=False) as generation:
            self._read(await generation.__anext__())
        return self._finished()

    async def stream(self) -> EventStream:
        """The response as events."""
        generation = await self.start(stream=True)
        return EventStream(self._events(generation), [generation], end=b"")

    async def _events(self, generation: Generation) -> AsyncIterator[bytes]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event({"type": kind, "response": self._response("in_progress")})
        try:
            async for output in generation:
                for item_event in self._read(output):
                    yield self._event(item_event)
        except Exception as error:
            self.finish_reason, self.error = "error", error_event(error)["error"]["message"]
            for item_event in self.output.end(complete=False) if self.output.items else ():
                yield self._event(item_event)
        response = self._finished()
        yield self._event({"type": f"response.{response['status']}", "response": response})

    def _event(self, content: Event) -> bytes:
        numbered = {**content, "sequence_number": self._num_events}
        self._num_events += 1
        return event(numbered, content["type"])

    def _read(self, output: RequestOutput) -> list[Event]:
        """Take in what is new."""
        self.cached_tokens = max(self.cached_tokens, output.num_cached_tokens)
        events: list[Event] = []
        for completion in output.outputs:
            self.completion_tokens += len(completion.token_ids)
            asked = completion.logprobs is not None
            tokenizer = self.state.engine.assets.get_tokenizer()
            logprobs = logprobs_json(tokenizer, completion, self.body.top_logprobs or 0) if asked else None
            events += self.output.add(self.reader.read(completion), logprobs)
            if completion.finish_reason is not None:
                self.finish_reason, self.error = completion.finish_reason, completion.error
                events += self.output.end(complete=completion.finish_reason == "stop")
        return events

    # --- the response -------------------------------------------------------------------------------------------------

    def _finished(self) -> dict[str, Any]:
        """The response at its end, stored if that is wanted. One that failed is nothing to come back to."""
        status = {"stop": "completed", "length": "incomplete"}.get(self.finish_reason or "", "failed")
        response = self._response(status)
        if status != "failed" and self.body.store is not False:
            self.state.responses.put(StoredResponse(response, self.items))
        return response

    def _response(self, status: str) -> dict[str, Any]:
        body, params = self.body, self.params
        assert isinstance(params, SamplingParams)
        text = {} if body.text is None else body.text.model_dump(by_alias=True, exclude_none=True)
        failed = {"code": "server_error", "message": self.error or "the request was aborted"}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": failed if status == "failed" else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "model": self.model,
            "output": self.output.items if status != "in_progress" else [],
            "parallel_tool_calls": self.tools.parallel,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
            "store": body.store is not False,
            "temperature": params.temperature,
            "text": {"format": {"type": "text"}, **text},
            "tool_choice": self._tool_choice(),
            "tools": [tool.model_dump() for tool in body.tools or []],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None if status == "in_progress" else self._usage(),
            "user": body.user,
        }

    def _tool_choice(self) -> Any:
        choice = self.body.tool_choice
        return choice.model_dump() if isinstance(choice, FunctionChoice) else choice or "auto"

    def _usage(self) -> dict[str, Any]:
        reasoning = self.reader.parsed.reasoning
        tokenizer = self.state.engine.assets.get_tokenizer()
        thought = len(encode(tokenizer, reasoning, add_special_tokens=False)) if reasoning else 0
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": self.cached_tokens,
                "cache_write_tokens": self.prompt_tokens - self.cached_tokens,
            },
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
