"""Prompts as users write them, made into requests: the forms a prompt may take, and one setting or many.

``LLM`` uses these before it admits anything, so that what is wrong with one prompt shows while nothing has started.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

from quire.reference.control.errors import RequestError
from quire.reference.control.params import RequestParams
from quire.reference.tokenizer import encode

Prompt: TypeAlias = "str | Sequence[int] | Mapping[str, Any]"
Message: TypeAlias = "dict[str, Any]"

KEYS = ("prompt", "prompt_token_ids", "cache_salt")


@dataclass(slots=True)
class Prepared:
    """One request, ready to be admitted."""

    prompt: str | None
    token_ids: list[int]
    params: RequestParams
    priority: int
    cache_salt: str | None


def prepare(prompt: Any, params: RequestParams, priority: Any, tokenizer: Callable[[], Any]) -> Prepared:
    """Bring a prompt of any form into the one form; text is tokenized, which is when ``tokenizer`` is called for."""
    if isinstance(priority, bool) or not isinstance(priority, Integral):
        raise RequestError("priority", priority, "not an integer", "Give an integer; lower runs first")
    text, token_ids, salt = prompt, None, None
    if isinstance(prompt, Mapping):
        for key in prompt:
            if key not in KEYS:
                raise RequestError("prompt", key, "unknown key", f"Known ones are {', '.join(KEYS)}")
        text, token_ids, salt = (prompt.get(key) for key in KEYS)
        if salt is not None and (not isinstance(salt, str) or not salt):
            raise RequestError("cache_salt", salt, "not a text", "Give a string that is not empty, or leave it out")
        if text is None and token_ids is None:
            raise RequestError("prompt", dict(prompt), "neither text nor token ids", 'Give {"prompt": "some text"}')
    elif not isinstance(prompt, str):
        text, token_ids = None, prompt
    if token_ids is None:
        if not isinstance(text, str):
            raise RequestError("prompt", text, "not a text", "Give a string or token ids")
        token_ids = encode(tokenizer(), text)
    elif hasattr(token_ids, "tolist"):
        token_ids = token_ids.tolist()  # an array or a tensor
    if isinstance(token_ids, str | bytes) or not isinstance(token_ids, Sequence):
        raise RequestError("prompt_token_ids", token_ids, "not a list of token ids", "Give a list of integers")
    return Prepared(text, list(token_ids), params, int(priority), salt)


def as_list(prompts: Any) -> Sequence[Prompt]:
    """One prompt or several, as several. A list of integers is one prompt of token ids."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if hasattr(prompts, "tolist"):
        prompts = prompts.tolist()
    if not isinstance(prompts, Sequence):
        raise RequestError("prompts", prompts, "not a prompt", "Give a text, token ids, or a list of these")
    return [prompts] if prompts and isinstance(prompts[0], Integral) else prompts


def per_prompt(name: str, value: Any, count: int, default: Any) -> list[Any]:
    """A setting that is given for all prompts at once, or one by one."""
    if value is None:
        value = default()
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise RequestError(
            name, f"{len(value)} values", f"for {count} prompts", "Give one for all prompts, or one for each"
        )
    return list(value)


def located(error: RequestError, index: int, count: int) -> RequestError:
    """The error with the number of its prompt, where there are several."""
    if count == 1:
        return error
    return RequestError(
        error.field, error.value, f"{error.problem} (prompt {index} of {count}, counted from 0)", error.remedy
    )
