"""A data plane that plays a skilful model: given prompts get given answers, token by token.

Suites that judge what a model answers (does it call the tool, does it keep to the schema) then judge the server: the
engine, the scheduler, the grammars and HTTP are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quire.assets import load_assets
from quire.reference.config import EngineConfig
from quire.reference.control.plan import Logprobs, StepPlan, StepResult
from quire.reference.engine import Engine
from tests.reference.ghost import GhostPending, ghost_engine

Rule = tuple[Callable[[str], bool], str]  # (does it hold of the rendered prompt?, the answer)


@dataclass
class Row:
    """A sequence: its tokens, how many of them are the prompt, what it was asked for, and the answer it is giving."""

    tokens: list[int]
    prompt_len: int
    params: object
    answer: list[int] | None = None


@dataclass
class ScriptedRunner:
    """Answers a prompt by the first rule that holds of it and may begin, then emits ``eos``. Without one a step fails.

    A mask may forbid an answer's first token: then another rule's turn has come. Where it forbids a later one the step
    fails too, since a script that breaks its grammar is a wrong test.
    """

    tokenizer: Any
    eos: int
    rules: list[Rule]
    vocab_size: int
    rows: dict[int, Row] = field(default_factory=dict)
    waited: list[int] = field(default_factory=list)  # the ghost's pending result notes its step here

    def forward(self, plan: StepPlan) -> None:
        self._plan = plan
        for row in plan.ends:
            self.rows.pop(row, None)
        for start in plan.starts:
            self.rows[start.row] = Row(list(start.token_ids), start.prompt_len, start.params)
        for fork in plan.forks:
            assert fork.token is None, "a script has no beams"
            parent = self.rows[fork.parent_row]
            self.rows[fork.row] = Row(parent.tokens[: fork.length], parent.prompt_len, fork.params, parent.answer)

    def sample(self, masks: Mapping[int, np.ndarray] | None = None) -> GhostPending:
        result = StepResult(self._plan.step, [[] for _ in self._plan.seqs])
        for i, seq in enumerate(self._plan.seqs):
            if not seq.samples:
                continue
            row = self.rows[seq.row]
            mask = masks.get(i) if masks else None
            if row.answer is None:
                row.answer = self._answer(row, mask)
            done = len(row.tokens) - row.prompt_len
            token = row.answer[done] if done < len(row.answer) else self.eos
            assert mask is None or mask[token], f"the grammar forbids the script's token {token} here"
            row.tokens.append(token)
            result.tokens[i] = [token]
            if row.params.logprobs is not None:
                result.logprobs[i] = [Logprobs([token], [-0.5], 1)]
        return GhostPending(self, result)

    def _answer(self, row: Row, mask: np.ndarray | None) -> list[int]:
        prompt = self.tokenizer.decode(row.tokens[: row.prompt_len], skip_special_tokens=False)
        for holds, text in self.rules:
            if holds(prompt):
                answer = self.tokenizer.encode(text, add_special_tokens=False)
                if mask is None or mask[answer[0]]:
                    return answer
        raise AssertionError(f"no rule for the prompt {prompt!r}")


def scripted_engine(rules: list[Rule]) -> Engine:
    """An engine on the embedded model's tokenizer whose model answers by ``rules``."""
    assets = load_assets(EngineConfig())
    tokenizer = assets.get_tokenizer()
    runner = ScriptedRunner(tokenizer, assets.eos_token_ids[0], rules, len(tokenizer))
    return ghost_engine(
        runner,
        eos=assets.eos_token_ids,
        tokenizer=tokenizer,
        block_size=16,
        num_blocks=513,
        max_model_len=2048,
        max_num_batched_tokens=4096,
    )
