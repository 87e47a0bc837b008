"""What a request may ask for: ``SamplingParams``, ``BeamSearchParams`` or ``PoolingParams``, with vLLM's names.

Values are checked where they are given. A bad one raises ``RequestError`` naming field, value and remedy before the
engine has seen the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from quire.reference.control.checks import flag, integer, known_fields_only, number, strings, token_ids
from quire.reference.control.errors import RequestError
from quire.reference.control.structured import StructuredOutputsParams

MAX_SEQUENCES = 4096  # of one request: each costs work before it is known whether it can run
MAX_LOGPROBS = 1024  # more per position is a dump of the vocabulary, not a request


@known_fields_only(RequestError, "sampling parameter")
@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose the next token and when to stop. Names, defaults and meanings are vLLM's.

    n                    completions returned per prompt
    best_of              completions generated; the ``n`` with the highest cumulative log-probability are returned
    presence_penalty     subtracted from the logits of tokens in the output, once each
    frequency_penalty    subtracted from the logits of tokens in the output, once per occurrence
    repetition_penalty   divides positive and multiplies negative logits of tokens in prompt and output
    temperature          0 = greedy; logits are divided by it otherwise
    top_p                keep the smallest set of likeliest tokens whose probability reaches top_p
    top_k                keep the k likeliest tokens (0 or -1 = all)
    min_p                keep tokens at least min_p times as likely as the likeliest
    seed                 makes this request reproducible; None = from the engine's seed and the request's number
    stop                 a string, or several, that end the text
    stop_token_ids       tokens that end it, besides the model's end-of-sequence tokens
    bad_words            strings that may not be produced
    bad_words_token_ids  the same as token ids; whoever owns the tokenizer adds those of ``bad_words``
    ignore_eos           go on past the model's end-of-sequence tokens
    max_tokens           tokens generated at most; None = as many as the model's context leaves
    min_tokens           no stop token may be sampled before this many tokens
    logprobs             log-probabilities of so many likeliest tokens, and of the sampled one (0 = only that)
    prompt_logprobs      the same for every prompt position
    detokenize           produce text; False = token ids only
    skip_special_tokens  leave special tokens out of the text
    include_stop_str_in_output   keep the stop string at the end of the text
    logit_bias           token id -> number added to its logit, in [-100, 100]
    allowed_token_ids    only these may be sampled
    structured_outputs   a ``StructuredOutputsParams``: the text follows a JSON schema, a regex, a grammar
    speculative          False: without speculative decoding, should the engine do that; it changes the time only
    """

    n: int = 1
    best_of: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    bad_words: Sequence[str] | None = ()
    bad_words_token_ids: Sequence[Sequence[int]] = ()
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    speculative: bool | None = None

    def __post_init__(self) -> None:
        integer("n", self.n, 1, MAX_SEQUENCES)
        if self.best_of is not None:
            integer("best_of", self.best_of, 1, MAX_SEQUENCES)
            if self.best_of < self.n:
                raise RequestError(
                    "best_of", self.best_of, f"smaller than n={self.n}", "Give best_of ≥ n or leave it out"
                )
        number("presence_penalty", self.presence_penalty, -2, 2)
        number("frequency_penalty", self.frequency_penalty, -2, 2)
        number("repetition_penalty", self.repetition_penalty, 0, 100, open_low=True)
        number("temperature", self.temperature, 0, 100)
        number("top_p", self.top_p, 0, 1, open_low=True)
        integer("top_k", self.top_k, -1)
        number("min_p", self.min_p, 0, 1)
        if self.seed is not None:
            integer("seed", self.seed, -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            integer("max_tokens", self.max_tokens, 1)
        integer("min_tokens", self.min_tokens, 0, self.max_tokens)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 0, MAX_LOGPROBS)
        if not isinstance(self.logit_bias, Mapping | None):
            raise RequestError("logit_bias", self.logit_bias, "not a mapping", "Give a dict of token id -> number")
        for token, bias in (self.logit_bias or {}).items():
            integer("logit_bias", token, 0)
            number("logit_bias", bias, -100, 100)
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise RequestError(
                    "allowed_token_ids",
                    self.allowed_token_ids,
                    "empty, so no token could be sampled",
                    "Give at least one token id or leave it out",
                )
            object.__setattr__(self, "allowed_token_ids", token_ids("allowed_token_ids", self.allowed_token_ids))
        object.__setattr__(self, "stop", strings("stop", self.stop))
        object.__setattr__(self, "bad_words", strings("bad_words", self.bad_words))
        object.__setattr__(self, "stop_token_ids", token_ids("stop_token_ids", self.stop_token_ids))
        words = self.bad_words_token_ids
        if isinstance(words, str) or not isinstance(words, Sequence) or any(isinstance(w, int) or not w for w in words):
            raise RequestError(
                "bad_words_token_ids", words, "not a list of non-empty token sequences", "Give a list of lists"
            )
        object.__setattr__(self, "bad_words_token_ids", tuple(token_ids("bad_words_token_ids", w) for w in words))
        for name in ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output"):
            flag(name, getattr(self, name))
        if self.speculative is not None:
            flag("speculative", self.speculative)
        if self.stop and not self.detokenize:
            raise RequestError(
                "stop",
                self.stop,
                "stop strings are found in the text, and detokenize is False",
                "Set detokenize=True or use stop_token_ids",
            )
        if not isinstance(self.structured_outputs, StructuredOutputsParams | None):
            raise RequestError(
                "structured_outputs", self.structured_outputs, "not a StructuredOutputsParams",
                "Give StructuredOutputsParams(json=…), or with regex, choice, grammar or json_object",
            )  # fmt: skip

    @property
    def num_sequences(self) -> int:
        """Sequences that the engine generates for this request."""
        return self.best_of or self.n

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@known_fields_only(RequestError, "beam search parameter")
@dataclass(frozen=True, kw_only=True)
class BeamSearchParams:
    """Beam search: the ``beam_width`` likeliest continuations are kept at each step (vLLM's names and meanings).

    A hypothesis scores its cumulative log-probability / length ** length_penalty, of the model's raw logits.

    beam_width           hypotheses that live on at each step, and that are returned
    max_tokens           tokens generated at most
    ignore_eos           go on past the model's end-of-sequence tokens
    length_penalty       the exponent above: more than 1 favours long hypotheses, less favours short ones
    stop_token_ids       tokens that end a hypothesis, besides the model's end-of-sequence tokens
    skip_special_tokens  leave special tokens out of the text
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    length_penalty: float = 1.0
    stop_token_ids: Sequence[int] | None = ()
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        integer("beam_width", self.beam_width, 1, MAX_LOGPROBS // 2)
        integer("max_tokens", self.max_tokens, 1)
        number("length_penalty", self.length_penalty, -10, 10)
        flag("ignore_eos", self.ignore_eos)
        flag("skip_special_tokens", self.skip_special_tokens)
        object.__setattr__(self, "stop_token_ids", token_ids("stop_token_ids", self.stop_token_ids))


@known_fields_only(RequestError, "pooling parameter")
@dataclass(frozen=True, kw_only=True)
class PoolingParams:
    """An embedding in place of text: how a prompt's hidden states, after the model's final norm, become one vector.

    pooling     "mean" of all positions, or the "last" position's (the only one that has seen the whole prompt)
    normalize   divide the vector by its Euclidean length
    dimensions  keep the first so many numbers, before normalising (for models trained as Matryoshkas; Kusupati et al.
                2022); None = all
    """

    pooling: Literal["mean", "last"] = "mean"
    normalize: bool = True
    dimensions: int | None = None

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "last"):
            raise RequestError("pooling", self.pooling, "no known way of pooling", 'Give "mean" or "last"')
        flag("normalize", self.normalize)
        if self.dimensions is not None:
            integer("dimensions", self.dimensions, 1)


RequestParams: TypeAlias = "SamplingParams | BeamSearchParams | PoolingParams"
