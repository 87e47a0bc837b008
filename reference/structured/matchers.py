"""One matcher per sequence: the tokens that its grammar allows next, and those it has taken.

The engine asks for the masks of a step after its forward pass has been launched and the tokens before it are known, and
hands every event over when it comes. So preemption, chunked prefill, run-ahead and prefix caching mean nothing here: a
matcher follows the tokens that were given out, however they came about.

What a sequence may sample is the conjunction of

    the grammar              only it knows the text; end tokens are no text
    end tokens               where the text so far is complete (and only there), from min_tokens tokens on;
                             end-of-sequence tokens never with ignore_eos
    allowed_token_ids, bad_words

Where that leaves nothing the sequence ends: with "stop" if its text is complete, else with "error" and a message that
says what happened. A token in ``stop_token_ids`` that the grammar takes for text ends the sequence where it comes, as
a stop string does.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from quire.reference.control.request import Event
from quire.reference.control.sequence import Sequence
from quire.reference.structured.compiler import short

if TYPE_CHECKING:
    from llguidance import LLMatcher

Mask = npt.NDArray[np.bool_]


@dataclass(slots=True)
class NoToken:
    """Nothing may be sampled: the text is complete, or ``problem`` says why it cannot go on."""

    problem: str | None


class Matchers:
    """The matchers of all structured requests in an engine. Masks are bool [vocab_size], True = allowed.

    vocab_size      of the model; ids that the tokenizer does not have (padding rows) are never allowed
    eos_token_ids   of the model and of the tokenizer
    """

    def __init__(self, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self.vocab_size = vocab_size
        self._eos = self._in_vocab(eos_token_ids)
        self._grammars: dict[str, LLMatcher] = {}  # by request, at its beginning
        self._matchers: dict[str, dict[int, LLMatcher]] = {}  # by request and index

    def add(self, request_id: str, grammar: LLMatcher) -> None:
        """Expect sequences of this request."""
        self._grammars[request_id] = grammar
        self._matchers[request_id] = {}

    def drop(self, request_id: str) -> None:
        """Forget a request, all its sequences have ended; unknown ones are fine."""
        self._grammars.pop(request_id, None)
        self._matchers.pop(request_id, None)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._grammars

    def __len__(self) -> int:
        return len(self._grammars)

    def take(self, event: Event) -> None:
        """Follow the tokens that a sequence has gained. What the grammar refuses shows in the next mask."""
        matchers = self._matchers.get(event.request_id)
        if matchers is None:
            return
        if event.finish_reason is not None:
            matchers.pop(event.index, None)
        elif event.token_ids:
            self._matcher(event.request_id, event.index).consume_tokens(event.token_ids)

    def mask(self, seq: Sequence, drafts: Tokens[int] = ()) -> Mask | NoToken:
        """What may follow the sequence's tokens and ``drafts``, all of which have been taken; never an empty mask."""
        matcher = self._matcher(seq.group.request.request_id, seq.index)
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            return NoToken(f"the grammar cannot be followed any further: {short(matcher.get_error())}")
        allowed = np.zeros(self.vocab_size, bool)
        known = min(self.vocab_size, 8 * len(bits))
        allowed[:known] = np.unpackbits(bits, count=known, bitorder="little")  # 150,000 tokens: 15 µs
        allowed[self._eos] = False
        complete = matcher.is_accepting()
        ends = self._in_vocab(seq.stop_ids)
        if len(seq.tokens) + len(drafts) - seq.prompt_len < seq.sampling.min_tokens:
            allowed[ends] = False
        elif complete:
            allowed[ends] = True
        self._restrict(allowed, seq, drafts)
        if allowed.any():
            return allowed
        return NoToken(None if complete else "the grammar and the other parameters together leave no token")

    def masks(self, seq: Sequence) -> Mask | NoToken:
        """What may follow the sequence's tokens, and after that each of its drafts: bool [m, vocab_size].

        There are at most len(seq.drafts) + 1 rows. They end behind the first draft that is not allowed, for no draft
        behind that can be accepted; and before a place where the sequence might be at its end, which is for the next
        step to find, should it get there. NoToken if it is at its end already.
        """
        first = self.mask(seq)
        if isinstance(first, NoToken):
            return first
        masks, taken, matcher = [first], 0, self._matcher(seq.group.request.request_id, seq.index)
        stops = set(self._in_vocab(seq.stop_ids).tolist()) | set(self._eos.tolist())
        for count, draft in enumerate(seq.drafts, 1):
            if not masks[-1][draft] or draft in stops or not matcher.consume_token(draft):
                break
            taken += 1
            after = self.mask(seq, seq.drafts[:count])
            if isinstance(after, NoToken):
                break
            masks.append(after)
        if taken:
            matcher.rollback(taken)
        return np.stack(masks)

    def _restrict(self, allowed: Mask, seq: Sequence, drafts: Tokens[int]) -> None:
        """Apply the masks that the sampler would skip where they leave nothing."""
        params = seq.sampling
        if params.allowed_token_ids is not None:
            chosen = np.zeros(self.vocab_size, bool)
            chosen[self._in_vocab(params.allowed_token_ids)] = True
            allowed &= chosen
        if params.bad_words_token_ids:
            from quire.reference.sampling.processors import banned_by_bad_words

            words = tuple(tuple(word) for word in params.bad_words_token_ids)
            output = [*seq.tokens[seq.prompt_len :], *drafts]
            allowed[banned_by_bad_words(words, np.array(output, np.int64))] = False

    def _matcher(self, request_id: str, index: int) -> LLMatcher:
        matchers = self._matchers[request_id]
        if index not in matchers:
            matchers[index] = self._grammars[request_id].deep_copy()
        return matchers[index]

    def _in_vocab(self, token_ids: Iterable[int]) -> npt.NDArray[np.int64]:
        return np.array([t for t in token_ids if 0 <= t < self.vocab_size], np.int64)
