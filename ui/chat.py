"""The chat: a conversation with every setting that a request can have, and a look under each answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from quire.ui import share
from quire.ui.client import Answer, ServerError, until
from quire.ui.conversation import Turn, answered, log_html, messages, said, tokens
from quire.ui.examples import EXAMPLES, Example
from quire.ui.parameters import ENGINE, FIRST, MORE, controls_of, fields, json_value
from quire.ui.shared import Page, facts, problem, split_target, under_way
from quire.ui.tokens import tokens_html

FORMS = {  # what the answer may look like -> the field of structured_outputs
    "any text": None,
    "any JSON object": "json_object",
    "JSON by a schema": "json",
    "one of a list": "choice",
    "regular expression": "regex",
    "grammar (Lark)": "grammar",
}
CONTROLS = (*FIRST, *MORE, *ENGINE)
EVERY = 0.08  # seconds between two updates of a streaming page: fluent for the eye, light for the wire
TOKENS_EVERY = 0.5


def build_chat(page: Page) -> None:
    """Lay the tab out and connect it."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            log = gr.HTML(log_html([], running=False), elem_id="conversation", padding=False)
            status = gr.HTML(elem_id="chat-status", padding=False)
            with gr.Row(elem_classes="composer"):
                prompt = gr.Textbox(
                    "", label="Message", show_label=False, placeholder="Your message", lines=1, max_lines=8,
                    scale=8, autofocus=True, elem_id="prompt", container=False,
                )  # fmt: skip
                send = gr.Button("Send", variant="primary", scale=1, min_width=84, elem_id="send")
                stop = gr.Button("Stop", variant="stop", scale=1, min_width=84, interactive=False, elem_id="stop")
            with gr.Row(elem_classes="chips"):
                chips = [gr.Button(e.title, size="sm", min_width=60, elem_classes="chip") for e in EXAMPLES]
            with gr.Row(elem_classes="chips"):
                again = gr.Button("Regenerate", size="sm", min_width=60, elem_id="again")
                clear = gr.Button("New conversation", size="sm", min_width=60, elem_id="clear")
                save_json = gr.Button("Save as JSON", size="sm", min_width=60, elem_id="save-json")
                save_markdown = gr.Button("Save as Markdown", size="sm", min_width=60, elem_id="save-markdown")
        with gr.Column(scale=5, min_width=320), gr.Tabs() as sides:
            with gr.Tab("Settings", id="settings"):
                system = gr.Textbox("", label="System prompt", lines=2, elem_id="system")
                first = controls_of(page.meanings, FIRST)
                with gr.Accordion("More parameters", open=False), gr.Row(elem_classes="grid"):
                    rest = controls_of(page.meanings, (*MORE, *ENGINE))
                with gr.Accordion("Form of the answer", open=False):
                    form = gr.Dropdown(list(FORMS), value="any text", label="The answer is", elem_id="form")
                    definition = gr.Textbox(
                        "", label="Definition", lines=6, max_lines=16, elem_classes="code",
                        info="the JSON schema, the texts one a line, the expression, or the grammar",
                    )  # fmt: skip
                with gr.Accordion("Tools", open=False):
                    tools = gr.Textbox(
                        "", label="Functions the model may call", lines=6, max_lines=16, elem_classes="code",
                        info="a JSON list in OpenAI's form; your next message then is the called function's result",
                    )  # fmt: skip
                    tool_choice = gr.Dropdown(["auto", "required", "none"], value="auto", label="tool_choice")
                look = gr.Checkbox(True, label="Record tokens", info="asks for logprobs, which the Tokens view shows")
            with gr.Tab("Tokens", id="tokens"):
                token_view = gr.HTML(tokens_html([]), elem_id="tokens", padding=False)
            with gr.Tab("Request", id="request"):
                code = gr.HTML(
                    '<p class="hint">What the last message sent will be here.</p>', elem_id="code", padding=False
                )

    # ``running`` is what stops the answer under way: an asyncio.Event, or None. Whoever streams an answer is the only
    # one to write to the page meanwhile, and ends by itself when the event is set; one that is cancelled from outside
    # (Gradio's ``cancels``) may still have an update on its way.
    turns, running = gr.State([]), gr.State(None)
    saved, action = gr.JSON(visible="hidden"), gr.JSON(visible="hidden")
    act = gr.Button("Act", visible="hidden", elem_id="act")  # page.js clicks it for the buttons in the conversation
    controls = [*first, *rest]
    settings = {page.key, page.address, page.model, system, form, definition, tools, tool_choice, look, *controls}
    shown = [turns, running, log, token_view, status, stop]
    everything = [*shown, code]

    def view(conversation: list[Turn], note: str, stopper: asyncio.Event | None = None) -> dict[Any, Any]:
        """The page with this conversation; with a stopper an answer is under way."""
        busy = stopper is not None
        return {
            turns: conversation, running: stopper, log: log_html(conversation, running=busy), status: note,
            stop: gr.update(interactive=busy),
        }  # fmt: skip

    def request(values: dict[Any, Any], conversation: list[Turn], model: str | None) -> dict[str, Any]:
        """The request's body. Raises ValueError for what was typed wrongly."""
        body: dict[str, Any] = {"model": model} if model else {}
        body["messages"] = messages(conversation, values[system])
        body |= fields(CONTROLS, [values[control] for control in controls])
        kind = FORMS[values[form]]
        if kind is not None:
            body["structured_outputs"] = {kind: definition_of(kind, values[definition])}
        if values[tools].strip():
            body |= {"tools": json_value("tools", values[tools]), "tool_choice": values[tool_choice]}
        if values[look]:
            body |= {"logprobs": True, "top_logprobs": 5}
        return body

    async def answer(values: dict[Any, Any], conversation: list[Turn]) -> AsyncIterator[dict[Any, Any]]:
        """Stream the answer to a conversation that ends with something said."""
        url, model = split_target(values[page.model], page.client)
        try:
            body = request(values, conversation, model)
        except ValueError as error:
            yield view(conversation, problem(str(error)))
            return
        keyed = bool(values[page.key])
        address = values[page.address] or url
        sources = share.code_html("curl", share.as_curl(address, body, keyed=keyed))
        sources += share.code_html("Python, with the openai SDK", share.as_python(address, body, keyed=keyed))
        stopper = asyncio.Event()
        yield view(conversation, facts({"first token": "…"}), stopper) | {code: sources}
        so_far, note, reason = Answer(), "", None
        painted = tokens_painted = 0.0
        try:
            async for so_far in until(stopper, page.client.chat(url, body, values[page.key])):
                now = time.perf_counter()
                if so_far.first is None or now - painted < EVERY:
                    continue
                painted, new = now, [*conversation, answered(so_far)]
                update = view(new, facts(new[-1]["measured"]), stopper)
                if now - tokens_painted > TOKENS_EVERY:
                    tokens_painted = now
                    update[token_view] = tokens_html(tokens(new[-1]))
                yield update
        except ServerError as error:
            note, reason = problem(str(error)), "broken off"
        if stopper.is_set():
            reason = "stopped"
        if so_far.first is not None or (so_far.choices and reason is None):
            conversation = [*conversation, answered(so_far, reason)]
            note = summary(conversation[-1]) + note
        last = conversation[-1]
        yield view(conversation, note) | {token_view: tokens_html(tokens(last))}

    async def on_send(values: dict[Any, Any]) -> AsyncIterator[dict[Any, Any]]:
        text, conversation = values[prompt], values[turns]
        if under_way(values[running]):
            gr.Info("An answer is under way: stop it first")
            yield {prompt: gr.skip()}
        elif not text.strip():
            yield {prompt: gr.skip()}
        else:
            yield {prompt: ""}
            async for update in answer(values, [*conversation, said(conversation, text)]):
                yield update

    async def on_again(values: dict[Any, Any]) -> AsyncIterator[dict[Any, Any]]:
        """Answer the last thing that was said once more."""
        conversation = values[turns]
        while conversation and conversation[-1]["role"] == "assistant":
            conversation = conversation[:-1]
        if under_way(values[running]) or not conversation:
            yield {log: gr.skip()}
            return
        async for update in answer(values, conversation):
            yield update

    async def on_action(values: dict[Any, Any]) -> AsyncIterator[dict[Any, Any]]:
        """A button in the conversation: look at a turn's tokens, answer again, or say something else in its place."""
        conversation, wanted = values[turns], values[action]
        place = int(wanted["turn"])
        if wanted["do"] == "tokens":
            yield {token_view: tokens_html(tokens(conversation[place])), sides: gr.update(selected="tokens")}
        elif under_way(values[running]):
            yield {log: gr.skip()}
        elif wanted["do"] == "regenerate":
            async for update in on_again(values | {turns: conversation[: place + 1]}):
                yield update
        else:  # what came after an edited message is forgotten
            changed = conversation[place] | {"content": str(wanted["text"])}
            async for update in answer(values, [*conversation[:place], changed]):
                yield update

    async def on_stop(stopper: asyncio.Event | None) -> None:
        if stopper is not None:
            stopper.set()

    def on_clear(stopper: asyncio.Event | None) -> dict[Any, Any]:
        if under_way(stopper):
            gr.Info("An answer is under way: stop it first")
            return {log: gr.skip()}
        return view([], "") | {token_view: tokens_html([])}

    def on_example(example: Example) -> list[Any]:
        return [example.prompt, example.temperature, example.form, example.definition, example.tools]

    def on_save(values: dict[Any, Any], kind: str) -> dict[str, str]:
        """The file that the browser saves: its name and its text."""
        _, model = split_target(values[page.model], page.client)
        name, said_so_far = model or "model", messages(values[turns], values[system])
        if kind == "md":
            return {"name": "conversation.md", "text": share.as_markdown(said_so_far, name)}
        try:
            parameters = fields(CONTROLS, [values[control] for control in controls])
        except ValueError as error:
            raise gr.Error(str(error)) from None
        whole = {"model": name, "system": values[system], "parameters": parameters, "turns": values[turns]}
        return {"name": "conversation.json", "text": share.as_json(whole)}

    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    asked = settings | {prompt, turns, running}
    gr.on([send.click, prompt.submit], on_send, asked, [prompt, *everything], **quiet)
    again.click(on_again, asked, everything, **quiet)
    act.click(None, None, action, js="() => quirePage.action").then(
        on_action, asked | {action}, [*everything, sides], **quiet
    )
    stop.click(on_stop, running, None, **quiet)
    clear.click(on_clear, running, shown, **quiet)
    temperature = first[0]
    for chip, example in zip(chips, EXAMPLES):
        filled = [prompt, temperature, form, definition, tools]
        chip.click(lambda example=example: on_example(example), None, filled, **quiet)
    for button, kind in ((save_json, "json"), (save_markdown, "md")):
        button.click(lambda values, kind=kind: on_save(values, kind), settings | {turns}, saved, **quiet).then(
            None, saved, None, js="(file) => quirePage.save(file)"
        )


def definition_of(kind: str, text: str) -> Any:
    """The definition of an answer's form as the server takes it. Raises ValueError."""
    match kind:
        case "json_object":
            return True
        case "json":
            return json_value("the schema", text)
        case "choice":
            return [line for line in text.split("\n") if line]
        case _:
            return text


def summary(turn: Turn) -> str:
    """The line under a finished answer."""
    return facts(turn["measured"] | {"ended by": turn["finish_reason"] or "–"})
