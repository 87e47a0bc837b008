"""The sampling parameters of every row, as arrays: written when a row starts or forks, read at every step.

NumPy only. The arrays are what a GPU sampler would keep on the device; the few parameters that are lists (bad words,
biases) stay in ``rules`` and cost something only in rows that use them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quire.reference.control.params import SamplingParams

GREEDY_BELOW = 1e-5  # a smaller temperature is greedy: dividing by it would leave float32's range


@dataclass(frozen=True)
class Rules:
    """One row's parameters that are lists. Token ids outside the vocabulary can never be sampled and are left out."""

    allowed: npt.NDArray[np.int64] | None  # the only tokens allowed; None = all
    bad_words: tuple[tuple[int, ...], ...]  # token sequences that may not be completed
    bias_ids: npt.NDArray[np.int64]
    bias_values: npt.NDArray[np.float32]
    stop_ids: npt.NDArray[np.int64]  # masked until min_tokens were generated

    @property
    def lasting(self) -> bool:
        """Whether there is anything to do at every step (``min_tokens`` alone ends)."""
        return self.allowed is not None or bool(self.bad_words) or len(self.bias_ids) > 0


class SamplerState:
    """Persistent sampling state of ``num_rows`` rows over a vocabulary of ``vocab_size`` tokens.

    temperature (0 = greedy), top_p, log_min_p, presence, frequency, repetition   float [num_rows]
    top_k (vocab_size = off), min_tokens, prompt_len   int64 [num_rows]
    seed uint64, stream uint32                         key of the row's random numbers
    logprobs, prompt_logprobs                          int64, how many top entries; -1 = not asked for
    rules, lasting, penalised                          the lists; which rows have such rules; which have penalties
    """

    def __init__(self, num_rows: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.temperature = np.zeros(num_rows, np.float32)
        self.top_p = np.ones(num_rows, np.float64)
        self.top_k = np.full(num_rows, vocab_size, np.int64)
        self.log_min_p = np.full(num_rows, -np.inf, np.float32)
        self.presence = np.zeros(num_rows, np.float32)
        self.frequency = np.zeros(num_rows, np.float32)
        self.repetition = np.ones(num_rows, np.float32)
        self.min_tokens = np.zeros(num_rows, np.int64)
        self.prompt_len = np.zeros(num_rows, np.int64)
        self.seed = np.zeros(num_rows, np.uint64)
        self.stream = np.zeros(num_rows, np.uint32)
        self.logprobs = np.full(num_rows, -1, np.int64)
        self.prompt_logprobs = np.full(num_rows, -1, np.int64)
        self.lasting = np.zeros(num_rows, bool)
        self.penalised = np.zeros(num_rows, bool)
        self.rules: list[Rules | None] = [None] * num_rows

    def start(
        self, row: int, params: SamplingParams, *, prompt_len: int, seed: int, stream: int, stop_ids: tuple[int, ...]
    ) -> None:
        """Set up ``row`` for a new sequence. ``seed`` is taken modulo 2^64, so negative ones are allowed."""
        self.prompt_len[row] = prompt_len
        self.seed[row] = seed % 2**64
        self.rules[row] = self._rules(params, self._in_vocab(stop_ids))
        self._set(row, params, stream)

    def fork(self, row: int, parent: int, params: SamplingParams, stream: int) -> None:
        """Set up ``row`` as a child of ``parent`` (or change it in place): prompt, seed and stop ids are inherited."""
        inherited = self.rules[parent]
        assert inherited is not None, f"row {parent} was never started"
        self.prompt_len[row] = self.prompt_len[parent]
        self.seed[row] = self.seed[parent]
        self.rules[row] = self._rules(params, inherited.stop_ids)
        self._set(row, params, stream)

    def _set(self, row: int, params: SamplingParams, stream: int) -> None:
        self.temperature[row] = 0 if params.temperature < GREEDY_BELOW else params.temperature
        self.top_p[row] = params.top_p
        self.top_k[row] = params.top_k if 0 < params.top_k < self.vocab_size else self.vocab_size
        self.log_min_p[row] = np.log(params.min_p) if params.min_p > 0 else -np.inf
        self.presence[row] = params.presence_penalty
        self.frequency[row] = params.frequency_penalty
        self.repetition[row] = params.repetition_penalty
        self.min_tokens[row] = params.min_tokens
        self.stream[row] = stream
        self.logprobs[row] = -1 if params.logprobs is None else params.logprobs
        self.prompt_logprobs[row] = -1 if params.prompt_logprobs is None else params.prompt_logprobs
        rules = self.rules[row]
        self.lasting[row] = rules is not None and rules.lasting
        penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
        self.penalised[row] = penalties != (0, 0, 1)

    def _rules(self, params: SamplingParams, stop_ids: npt.NDArray[np.int64]) -> Rules:
        allowed = params.allowed_token_ids
        bias = {token: value for token, value in (params.logit_bias or {}).items() if 0 <= token < self.vocab_size}
        return Rules(
            allowed=None if allowed is None else self._in_vocab(tuple(allowed)),
            bad_words=tuple(tuple(w) for w in params.bad_words_token_ids if w and max(w) < self.vocab_size),
            bias_ids=np.array(list(bias), np.int64),
            bias_values=np.array(list(bias.values()), np.float32),
            stop_ids=stop_ids,
        )

    def _in_vocab(self, token_ids: tuple[int, ...]) -> npt.NDArray[np.int64]:
        return np.array([t for t in token_ids if 0 <= t < self.vocab_size], np.int64)
