"""A data plane without a model, for tests of what stands above it: the next token is a function of the prefix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quire.reference.config import EngineConfig
from quire.reference.control.plan import Logprobs, StepPlan, StepResult
from quire.reference.control.scheduler import Scheduler
from quire.reference.engine import Engine, ModelFacts

EMBEDDING_SIZE = 4


def hashed(tokens: list[int], stream: int, vocab_size: int) -> int:
    """Some token that depends on every one before it."""
    value = 17 + stream
    for token in tokens:
        value = (value * 31 + token) % 1_000_003
    return value % vocab_size


@dataclass
class GhostRunner:
    """Keeps each row's tokens, as a runner does. ``script`` replaces the hash: (tokens, stream) -> token.

    Under a mask the hash chooses among the tokens allowed, every other time among the ``preferred`` ones if there are.
    """

    vocab_size: int = 100
    script: Callable[[list[int], int], int] | None = None
    preferred: frozenset[int] = frozenset()
    fail_at: int | None = None
    rows: dict[int, tuple[list[int], int, object]] = field(default_factory=dict)
    launched: list[int] = field(default_factory=list)
    waited: list[int] = field(default_factory=list)

    def forward(self, plan: StepPlan) -> None:
        if plan.step == self.fail_at:
            raise ZeroDivisionError("the ghost was told to fail")
        self.launched.append(plan.step)
        self._plan = plan
        for row in plan.ends:
            self.rows.pop(row, None)
        for start in plan.starts:
            self.rows[start.row] = (list(start.token_ids), start.stream, start.params)
        for fork in plan.forks:
            tokens, _, _ = self.rows[fork.parent_row]
            copy = tokens[: fork.length] + ([] if fork.token is None else [fork.token])
            self.rows[fork.row] = (copy, fork.stream, fork.params)

    def sample(self, masks: Mapping[int, np.ndarray] | None = None) -> GhostPending:
        plan = self._plan
        result = StepResult(plan.step, [[] for _ in plan.seqs])
        for i, seq in enumerate(plan.seqs):
            tokens, stream, params = self.rows[seq.row]
            if seq.pools:
                result.pooled[i] = np.ones(EMBEDDING_SIZE, "<f4").tobytes()
            if seq.samples:
                pick = self.script or (lambda t, s: hashed(t, s, self.vocab_size))
                token = self._allowed(masks[i], tokens, stream) if masks and i in masks else pick(tokens, stream)
                tokens.append(token)
                result.tokens[i] = [token]
                if params.logprobs is not None:
                    top = [(token + k) % self.vocab_size for k in range(params.logprobs)]
                    result.logprobs[i] = [Logprobs([token, *top], [-0.5, *(-0.5 - k for k in range(len(top)))], 1)]
        return GhostPending(self, result)

    def _allowed(self, mask: np.ndarray, tokens: list[int], stream: int) -> int:
        assert mask.dtype == bool and mask.shape == (self.vocab_size,) and mask.any()
        allowed = np.flatnonzero(mask).tolist()
        likely = [token for token in allowed if token in self.preferred]
        number = hashed(tokens, stream, 1_000_003)
        choices = likely if likely and number % 2 else allowed
        return choices[number // 2 % len(choices)]


@dataclass
class GhostPending:
    runner: GhostRunner
    result: StepResult

    def wait(self) -> StepResult:
        self.runner.waited.append(self.result.step)
        return self.result


def ghost_engine(
    runner: GhostRunner | None = None, *, eos: tuple[int, ...] = (), tokenizer: Any = None, recorder=None, **config
) -> Engine:
    """An engine on a ghost, with 64 blocks of 4 tokens and a context of 64 unless ``config`` says otherwise."""
    settings = EngineConfig(**{"block_size": 4, "num_blocks": 65, "max_model_len": 64, "max_num_seqs": 8} | config)
    scheduler = Scheduler(
        settings.scheduler(
            max_model_len=settings.max_model_len, num_blocks=settings.num_blocks, num_host_blocks=settings.num_blocks
        )
    )
    runner = runner or GhostRunner()
    facts = ModelFacts(
        name="ghost",
        vocab_size=runner.vocab_size,
        max_model_len=settings.max_model_len,
        embedding_size=EMBEDDING_SIZE,
        eos_token_ids=eos,
    )
    return Engine(
        settings,
        facts,
        scheduler,
        runner,
        recorder=recorder,
        tokenizer=None if tokenizer is None else lambda: tokenizer,
    )


def run(engine: Engine) -> dict[str, dict[int, list[int]]]:
    """Step until all is done; the tokens by request and completion."""
    out: dict[str, dict[int, list[int]]] = {}
    while engine.has_unfinished():
        for event in engine.step():
            out.setdefault(event.request_id, {}).setdefault(event.index, []).extend(event.token_ids)
    return out
