"""From logits to tokens: what each sampling parameter means, in the order in which they apply.

    masks (grammar, allowed_token_ids, bad words, min_tokens) → logit_bias → penalties        processors.py
    → temperature → min_p → top-k → top-p                                                     truncation.py
    → argmax(logits / T + Gumbel noise)                                                       sampler.py

Log-probabilities (logprobs.py) are of the raw logits, before all of this. ``SamplerState`` (state.py) holds the
parameters of every row as arrays, so that a step looks up and never interprets. A row's token depends on its own
logits, history and parameters only: never on the other rows, bit by bit.
"""

from quire.reference.sampling.logprobs import as_logprobs, rank_tokens, top_logprobs
from quire.reference.sampling.rejection import distribution, draw, reject
from quire.reference.sampling.sampler import sample
from quire.reference.sampling.state import SamplerState
from quire.reference.sampling.verification import Positions, verify

__all__ = [
    "Positions",
    "SamplerState",
    "as_logprobs",
    "distribution",
    "draw",
    "rank_tokens",
    "reject",
    "sample",
    "top_logprobs",
    "verify",
]
