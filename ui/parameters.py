"""The sampling parameters as controls of the page, and the controls' values as fields of a request.

What a parameter means is said once, in the docstring of ``SamplingParams``; whoever builds the page hands these
meanings in, since nothing here may import the engine. Ranges are the server's to check: its errors name field and
remedy, and the page shows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr


@dataclass(frozen=True)
class Control:
    """One parameter.

    kind      "slider", "number" or "integer" (empty = not sent), "check", "text", "lines" (a list of texts, one a
              line), "ids" (a list of token ids) or "json"
    default   the value at which it is left out of the request; sliders are always sent
    limits    of a slider: least, most, step
    meaning   of what is no sampling parameter but a field of requests
    """

    name: str
    kind: str
    default: Any = None
    limits: tuple[float, float, float] | None = None
    meaning: str = ""


FIRST = (
    Control("temperature", "slider", 0.7, (0, 2, 0.05)),
    Control("top_p", "slider", 1.0, (0.05, 1, 0.05)),
    Control("max_tokens", "slider", 256, (1, 2048, 1)),
    Control("seed", "integer"),
)
MORE = (
    Control("top_k", "integer"),
    Control("min_p", "number"),
    Control("presence_penalty", "number"),
    Control("frequency_penalty", "number"),
    Control("repetition_penalty", "number"),
    Control("n", "integer"),
    Control("min_tokens", "integer"),
    Control("stop", "lines"),
    Control("stop_token_ids", "ids"),
    Control("bad_words", "lines"),
    Control("allowed_token_ids", "ids"),
    Control("logit_bias", "json"),
    Control("ignore_eos", "check", False),
    Control("include_stop_str_in_output", "check", False),
    Control("skip_special_tokens", "check", True),
)
ENGINE = (
    Control("speculative", "check", True),
    Control("cache_salt", "text", meaning="keeps its blocks apart in the prefix cache"),
    Control("priority", "integer", meaning="lower runs first, on a server with --scheduling-policy priority"),
)
HINTS = {"lines": "one a line", "ids": "token ids with commas between", "json": 'such as {"42": -100}'}


def component(control: Control, meaning: str) -> gr.components.Component:
    """The control on the page, with its explanation."""
    hint = HINTS.get(control.kind)
    info = f"{meaning or control.meaning}{f' ({hint})' if hint else ''}"
    common: dict[str, Any] = {"label": control.name, "info": info, "elem_classes": f"set-{control.name}"}
    if control.kind == "slider":
        assert control.limits is not None
        least, most, step = control.limits
        return gr.Slider(least, most, value=control.default, step=step, **common)
    if control.kind == "check":
        return gr.Checkbox(control.default, **common)
    # Numbers too: a field for numbers cannot be empty in Gradio, and empty is what most of them should be.
    return gr.Textbox("", lines=2 if control.kind == "lines" else 1, min_width=150, **common)


def fields(controls: Sequence[Control], values: Sequence[Any]) -> dict[str, Any]:
    """What the controls say, as fields of a request; what is at its default is left out. Raises ValueError."""
    found: dict[str, Any] = {}
    for control, value in zip(controls, values):
        if control.kind == "slider":
            found[control.name] = int(value) if float(value).is_integer() else value
        elif control.kind == "check":
            if value != control.default:
                found[control.name] = value
        elif value:
            found[control.name] = parsed(control, value)
    return found


def parsed(control: Control, value: Any) -> Any:
    """The value of a control that is not empty."""
    match control.kind:
        case "integer" | "number":
            kind, name = (int, "an integer") if control.kind == "integer" else (float, "a number")
            try:
                return kind(value)
            except ValueError:
                raise ValueError(f"{control.name}: {value!r} is not {name}. Correct it or clear it") from None
        case "lines":
            return [line for line in str(value).split("\n") if line]
        case "ids":
            words = str(value).replace(",", " ").split()
            if not all(word.isdecimal() for word in words):
                raise ValueError(f"{control.name}: {value!r} is no list of token ids. Write numbers, such as 2, 17")
            return [int(word) for word in words]
        case "json":
            return json_value(control.name, str(value))
        case _:
            return value


def json_value(name: str, text: str) -> Any:
    """JSON that somebody has typed. Raises ValueError that says where it is wrong."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: no valid JSON ({error.msg}, line {error.lineno}). Correct it or clear it") from None


def controls_of(meanings: Mapping[str, str], controls: Sequence[Control]) -> list[gr.components.Component]:
    """The controls, laid out where this is called."""
    return [component(control, meanings.get(control.name, "")) for control in controls]
