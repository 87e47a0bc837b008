"""A checkpoint's tokenizer: loading it cheaply, and what an engine's owner needs of it.

The class is transformers', so that whatever a checkpoint brings (added tokens, chat template, special tokens) means
here what it means there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from quire.reference.control.errors import CheckpointError, RequestError

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "tekken.json", "spiece.model")


def has_tokenizer(path: Path) -> bool:
    """Whether the folder holds any file that a tokenizer could be made of."""
    return any((path / name).is_file() for name in _FILES)


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of the checkpoint in ``path``. Raises ``CheckpointError`` if there is none or it is damaged.

    A ``tokenizer.json`` is complete in itself, and loading it directly spares the second that AutoTokenizer takes to
    import model classes. Everything else (slow formats, code that comes with a checkpoint) goes through AutoTokenizer.
    """
    if not has_tokenizer(path):
        raise CheckpointError(
            "tokenizer", str(path), f"no tokenizer there (none of {', '.join(_FILES)})",
            "Name a folder or hub name with tokenizer=…, or give prompts as token ids and set detokenize=False",
        )  # fmt: skip
    try:
        if (path / "tokenizer.json").is_file() and "auto_map" not in _tokenizer_config(path):
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(path)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as cause:  # the libraries below raise anything, Rust panics' plain Exception included
        raise CheckpointError(
            "tokenizer", str(path), f"its tokenizer cannot be loaded ({type(cause).__name__}: {cause})",
            "Fetch the tokenizer files again, or name another tokenizer with tokenizer=…",
        ) from cause  # fmt: skip


def _tokenizer_config(path: Path) -> dict[str, Any]:
    file = path / "tokenizer_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def encode(tokenizer: Any, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """The token ids of ``text``. An empty prompt is refused here, where the user's text is still known."""
    if not text:
        raise RequestError(
            "prompt", text, "the prompt is empty", "Give some text, or the begin token alone as prompt_token_ids"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"half a surrogate pair at position {error.start}, which is no character"
        raise RequestError("prompt", ascii(text), problem, "Decode the text anew, perhaps as UTF-16") from None
    # verbose=False: transformers warns of long texts, and says nothing useful; the engine refuses them with a remedy.
    return list(tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))


def bad_words_token_ids(tokenizer: Any, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The token sequences that spell each word, at the start of a text and behind a space."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for text in (word.lstrip(), " " + word.lstrip()):
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            if ids:
                found[ids] = None
    return tuple(found)


def token_bytes(tokenizer: Any, token_id: int, text: str) -> bytes | None:
    """The bytes that a token adds to a text; None where its vocabulary does not tell.

    ``text`` is what the token decodes to by itself. That tells the bytes unless they are a part of a character, which
    decodes to U+FFFD. Then the vocabulary's entry tells, which spells bytes as the characters of GPT-2's alphabet, or
    is one of SentencePiece's <0x00> to <0xFF>.
    """
    if "\ufffd" not in text:
        return text.encode()
    entry = tokenizer.convert_ids_to_tokens(token_id)
    if isinstance(entry, bytes):
        return entry
    if re.fullmatch("<0x[0-9A-F]{2}>", entry):
        return bytes.fromhex(entry[3:5])
    if all(character in GPT2_BYTES for character in entry):
        return bytes(GPT2_BYTES[character] for character in entry)
    return text.encode() if "\ufffd" in entry else None  # U+FFFD itself may be a token


def _gpt2_bytes() -> dict[str, int]:
    """GPT-2's alphabet: Latin-1's visible characters are their own bytes; the others follow from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


GPT2_BYTES = _gpt2_bytes()


def render_chat(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    chat_template: str | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> str:
    """A conversation as the text the model was trained on, by the tokenizer's Jinja chat template."""
    if not messages or any(not isinstance(m, dict) or "role" not in m for m in messages):
        raise RequestError(
            "messages", messages, "not a conversation",
            'Give a list of messages such as {"role": "user", "content": "Hello"}',
        )  # fmt: skip
    plain = [_as_text(message, number) for number, message in enumerate(messages)]
    if isinstance(tools, str) or not all(isinstance(tool, dict) or callable(tool) for tool in tools or ()):
        raise RequestError(
            "tools", tools, "not a list of functions", 'Give descriptions such as {"type": "function", "function": …}'
        )
    if chat_template is None and tokenizer.chat_template is None:
        raise RequestError(
            "chat_template", None, "the model's tokenizer has no chat template",
            "Pass chat_template=…, or complete plain text with generate()",
        )  # fmt: skip
    try:
        return tokenizer.apply_chat_template(
            plain,
            tools=tools,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=False,
            **(chat_template_kwargs or {}),
        )
    except TemplateSyntaxError as cause:
        raise RequestError(
            "chat_template", chat_template or tokenizer.chat_template,
            f"no Jinja template (line {cause.lineno}: {cause.message})", "Correct it, or pass another one",
        ) from cause  # fmt: skip
    except Exception as cause:  # a template raises what it likes: unknown role, wrong order of turns, a missing field
        raise RequestError(
            "messages", messages, f"the chat template refuses them ({type(cause).__name__}: {cause})",
            "Change the messages as the template asks, or pass another chat_template",
        ) from cause  # fmt: skip


def _as_text(message: dict[str, Any], number: int) -> dict[str, Any]:
    """A message whose content is a text: parts of text go on lines of their own, and others cannot be read here."""
    content = message.get("content")
    if isinstance(content, str | None):
        return message
    if not isinstance(content, Sequence):
        raise RequestError(
            f"messages.{number}.content", content, "not a text", 'Give a string, or parts {"type": "text", "text": …}'
        )
    texts = []
    for place, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            problem = "not a part of text, and the models here read nothing else"
            raise RequestError(f"messages.{number}.content.{place}", part, problem, 'Give {"type": "text", "text": …}')
        texts.append(part["text"])
    return message | {"content": "\n".join(texts)}
