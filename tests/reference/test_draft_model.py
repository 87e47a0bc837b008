"""The draft model keeps its own K/V right, whatever happens to the blocks it shares with the target.

Every draft is compared with what the same model drafts from nothing: a cache of its own, all history at once. With
batch-invariant ops these are the same bits, so one stale or foreign position would show as soon as it mattered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import LLM, ConfigError, SamplingParams
from quire.reference.sampling import sample
from quire.reference.speculation.draft_model import DraftModel
from quire.reference.speculation.proposer import Draft, View
from tests.reference.test_metamorphic import assert_drained, gist
from tests.reference.test_speculation import any_params, any_prompt
from tests.toys import tiny_checkpoint

LENGTH = 96


class Checked(DraftModel):
    """Compares each of its drafts with one from scratch, and counts how many positions it had to compute."""

    checks = computed = 0

    def propose(self, view: View) -> list[Draft]:
        expected = [self._from_scratch(view, i) for i in range(len(view.rows))]
        drafts = super().propose(view)
        assert [draft.token_ids for draft in drafts] == expected
        self.checks += len(drafts)
        return drafts

    @torch.inference_mode()
    def _from_scratch(self, view: View, i: int) -> list[int]:
        row, length = int(view.rows[i]), int(view.lengths[i])
        shape = (1, LENGTH + 9, *self.caches[0][0].shape[2:])
        tokens = np.array(view.tokens)
        draft: list[int] = []
        while len(draft) < view.want[i]:
            n = length + len(draft)
            caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in self.caches]
            meta = self.model.ops.attn_meta([n], [n], [[0]], shape[1])
            ids = torch.from_numpy(tokens[row, :n].astype(np.int64))
            hidden = self.model.forward(ids, torch.arange(n), caches, meta)
            logits = self.model.logits(hidden[-1:]).float()
            token = int(sample(logits, view.sampler, view.rows[i : i + 1], np.array([n]), tokens))
            tokens[row, n] = token
            draft.append(token)
            if token in view.sampler.rules[row].stop_ids:
                break
        return draft

    def _forward(self, view: View, rows: Any, start: Any, end: Any) -> Any:
        self.computed += int((end - start).sum())
        assert (end > start).all()
        return super()._forward(view, rows, start, end)


def checked(llm: LLM) -> Checked:
    proposer = llm.engine.runner.proposer
    proposer.__class__ = Checked
    for pair in proposer.caches + proposer.host_caches:
        for cache in pair:
            cache.fill_(torch.nan)  # nothing may be read that was not written
    return proposer


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], str]:
    """A target; itself as the draft; and another, which hardly ever agrees."""
    made = {
        "target": tiny_checkpoint(tmp_path_factory.mktemp("target"), eos_token_id=None),
        "stranger": tiny_checkpoint(
            tmp_path_factory.mktemp("stranger"), hidden_size=32, num_attention_heads=2, num_key_value_heads=1
        ),
        "small vocabulary": tiny_checkpoint(tmp_path_factory.mktemp("small"), vocab_size=390),
    }
    return lambda name: str(made[name])


@pytest.fixture(scope="module")
def tiny(folders) -> Callable[..., LLM]:
    defaults = {"dtype": "float32", "device": "cpu", "backend": "reference", "batch_invariant": True}
    return lambda **more: LLM(folders("target"), **defaults | {"max_model_len": LENGTH, "num_blocks": 100} | more)


@pytest.fixture(scope="module")
def plain(tiny) -> LLM:
    return tiny(enable_prefix_caching=False)


@settings(max_examples=25)
@given(st.data())
def test_its_cache_is_right_whatever_happens(tiny, plain, folders, data):
    requests = data.draw(st.lists(st.tuples(any_prompt, any_params), min_size=1, max_size=5))
    truth = [gist(plain.generate(prompt, params, use_tqdm=False)[0]) for prompt, params in requests]
    block_size = data.draw(st.sampled_from([1, 4, 16]))
    llm = tiny(
        speculative_config={
            "model": folders(data.draw(st.sampled_from(["target", "target", "stranger"]))),
            "num_speculative_tokens": data.draw(st.integers(1, 6)),
            "adaptive": data.draw(st.booleans()),
        },
        block_size=block_size,
        num_blocks=LENGTH // block_size + 1 + data.draw(st.sampled_from([0, 2, 40])),
        max_num_batched_tokens=data.draw(st.sampled_from([5, 23, 200])),
        max_num_seqs=data.draw(st.integers(3, 8)),
        enable_prefix_caching=data.draw(st.booleans()),
        preemption_mode=data.draw(st.sampled_from(["recompute", "swap"])),
        async_scheduling=data.draw(st.booleans()),
    )
    checked(llm)
    for _ in range(2):  # the second time the prompts are in the prefix cache
        outputs = llm.generate([p for p, _ in requests], [s for _, s in requests], use_tqdm=False)
        assert [gist(output) for output in outputs] == truth
        assert_drained(llm)


def test_the_target_as_its_own_draft_is_always_right(tiny, folders):
    llm = tiny(speculative_config={"model": folders("target"), "num_speculative_tokens": 4, "adaptive": False})
    params = [
        SamplingParams(temperature=t, seed=1, max_tokens=31, top_p=0.9, presence_penalty=0.5) for t in (0, 0.8, 2)
    ]
    for output in llm.generate([[1, 2, 3]] * 3, params, use_tqdm=False):
        assert output.metrics.num_accepted_tokens == output.metrics.num_draft_tokens == 24  # 1, then 6 times 4 + 1


def test_shared_blocks_are_computed_once(tiny, folders):
    """What the draft model has computed for one request it need not compute for the next one with this beginning."""
    llm = tiny(speculative_config={"model": folders("target"), "num_speculative_tokens": 2}, block_size=4)
    proposer = checked(llm)
    prompt, params = list(range(1, 41)), SamplingParams(temperature=0, max_tokens=4)
    llm.generate(prompt, params, use_tqdm=False)
    cold = proposer.computed
    llm.generate([*prompt, 7], params, use_tqdm=False)
    assert cold >= 40 > proposer.computed - cold
    quiet = SamplingParams(temperature=0, max_tokens=4, speculative=False)
    llm.generate([*prompt[::-1]], quiet, use_tqdm=False)
    before = proposer.computed
    llm.generate([*prompt[::-1], 7], params, use_tqdm=False)  # a beginning that only the target has seen
    assert proposer.computed - before >= 41


def test_blocks_that_others_took_over_are_not_known_any_more(tiny, folders):
    """Once filled for one request, then given to another that does not speculate, then found by a third."""
    llm = tiny(
        speculative_config={"model": folders("target"), "num_speculative_tokens": 2}, block_size=4, num_blocks=25
    )
    proposer = checked(llm)
    for prompt, speculative in (([1] * 70, None), (list(range(1, 81)), False), ([*range(1, 81), 7], None)):
        params = SamplingParams(temperature=0, max_tokens=4, speculative=speculative)
        llm.generate(prompt, params, use_tqdm=False)
    assert proposer.checks > 1 and llm.stats().prefix_hits == 80


def test_long_prompts_are_caught_up_with_in_pieces(tiny, plain, folders, monkeypatch):
    monkeypatch.setattr("quire.reference.speculation.draft_model.CATCH_UP", 7)
    llm = tiny(speculative_config={"model": folders("target"), "num_speculative_tokens": 3, "adaptive": False})
    proposer = checked(llm)
    prompts, params = [[i] * (5 + 9 * i) for i in range(1, 6)], SamplingParams(temperature=1, seed=2, max_tokens=9)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [gist(o) for o in outputs] == [gist(o) for o in plain.generate(prompts, params, use_tqdm=False)]
    assert proposer.checks > 5


def test_a_draft_model_that_does_not_fit_is_refused(tiny, folders):
    with pytest.raises(ConfigError, match=r"speculative_config.model=.*390 tokens.* 384\. Name a draft"):
        tiny(speculative_config={"model": folders("small vocabulary")})
