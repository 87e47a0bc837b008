"""Token ids to text, one token at a time: what a stream shows, and where a stop string ends it.

Two things make this harder than ``decode(token_ids)``:

- A character may span tokens. Byte-level vocabularies cut emoji and most scripts into several tokens, and decoding a
  part of one gives U+FFFD, the replacement character. ``Detokenizer`` holds such a part back until it is whole.
- A stop string may span tokens. ``CompletionText`` holds back whatever could still become one, so that a reader never
  sees half of it, and finds the token that completed it.

A stream's pieces, put together, are exactly the text that is returned without streaming, because both come from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

REPLACEMENT = "\ufffd"
CONTEXT_TOKENS = 6


def token_decoder(tokenizer: Any, *, skip_special_tokens: bool) -> Callable[[list[int]], str]:
    """A function from token ids to their text, with spaces left as the model wrote them.

    Goes straight to the Rust tokenizer where there is one: it is called twice per token of every running sequence,
    and the wrapper around it costs several times the decoding.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return lambda ids: backend.decode(ids, skip_special_tokens=skip_special_tokens)
    return lambda ids: tokenizer.decode(
        ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )


class Detokenizer:
    """Incremental decoding of one sequence: ``push`` a token, get the text that became certain.

    Only a short window of tokens is decoded each time: the tokens behind the last complete piece of text, preceded by
    that piece itself. The preceding piece is there because the text of a token may depend on what stands before it
    (SentencePiece drops the space of a first word); it starts as the end of the prompt. This is the scheme of prefix
    and read offsets that Text Generation Inference introduced.

    A trailing run of U+FFFD is an unfinished character, or bytes that will never be one: it is held back, and shown
    only once other text follows it. At the end of a sequence it stays hidden.
    """

    def __init__(
        self, tokenizer: Any, prompt_token_ids: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._decode = token_decoder(tokenizer, skip_special_tokens=skip_special_tokens)
        context = CONTEXT_TOKENS
        self._window = list(prompt_token_ids[-context:])
        # A context without one whole character would let the prompt's own bytes leak into the output: take more.
        while not self._settled() and context < len(prompt_token_ids):
            context *= 2
            self._window = list(prompt_token_ids[-context:])
        self._read = len(self._window)  # tokens of the window whose text has been returned
        self._shown = len(self._settled())  # characters of the window's text that are not new

    def _settled(self) -> str:
        return self._decode(self._window).rstrip(REPLACEMENT)

    def push(self, token_id: int) -> str:
        """Append a token; return the text that it completes, often a word, sometimes nothing."""
        self._window.append(token_id)
        text = self._decode(self._window)
        settled = text.rstrip(REPLACEMENT)
        new = settled[self._shown :]
        if not new:
            return ""
        self._shown = len(settled)
        if len(settled) == len(text):  # a token ends where a character ends: the window can move
            del self._window[: self._read]
            self._read = len(self._window)
            self._shown = len(self._decode(self._window))
        return new


class CompletionText:
    """The text of one completion: grows token by token, ends at a stop string, and is given out in safe pieces.

    ``include_stop`` keeps the stop string in the text. Stop strings that begin within the first ``min_tokens`` tokens
    do not count.
    """

    def __init__(
        self, detokenizer: Detokenizer, *, stop: Sequence[str] = (), include_stop: bool = False, min_tokens: int = 0
    ) -> None:
        self.text = ""
        self._detokenizer = detokenizer
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._search_from = 0
        self._given = 0

    def push(self, token_id: int) -> str | None:
        """Append a token; return the stop string it completed, if any. The text is then cut there: push no more."""
        self._num_tokens += 1
        before = len(self.text)
        self.text += self._detokenizer.push(token_id)
        if not self._stop or len(self.text) == before:
            return None
        if self._num_tokens <= self._min_tokens:
            self._search_from = len(self.text)
            return None
        found = find_stop(self.text, self._stop, new_from=before, search_from=self._search_from)
        if found is None:
            return None
        start, stop = found
        self.text = self.text[: start + len(stop) if self._include_stop else start]
        return stop

    def take(self, *, final: bool = False) -> str:
        """The text not yet given out. Unless ``final``, an end that could grow into a stop string is kept back."""
        end = len(self.text)
        if not final and not self._include_stop:
            end -= partial_stop(self.text, self._stop, search_from=max(self._given, self._search_from))
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece


def find_stop(text: str, stop: Sequence[str], *, new_from: int, search_from: int = 0) -> tuple[int, str] | None:
    """The stop string that is completed first in ``text``, with its position, or None.

    Only matches that end behind ``new_from`` are new. The one that ends first wins, and of those the longest: what
    one would find reading character by character, however the text is cut into tokens.
    """
    best: tuple[int, int, str] | None = None
    for s in stop:
        start = text.find(s, max(search_from, new_from - len(s) + 1))
        if start >= 0 and (best is None or (start + len(s), start) < best[:2]):
            best = (start + len(s), start, s)
    return None if best is None else (best[1], best[2])


def partial_stop(text: str, stop: Sequence[str], *, search_from: int = 0) -> int:
    """Length of the longest end of ``text`` that is a beginning of a stop string."""
    longest = 0
    for s in stop:
        for length in range(min(len(s) - 1, len(text) - search_from), longest, -1):
            if text.endswith(s[:length]):
                longest = length
                break
    return longest
