"""Speculation never changes the text, whoever proposes: not a token, not a log-probability, bit by bit.

The proposers here are the worst and the best there can be. One offers garbage, one knows the answer, one knows it up to
some point; verification has to make the same text of all of them, in any batch, with any parameters.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.reference.speculation.proposer import Draft, View
from quire.reference.trace import read_trace
from tests.reference.test_metamorphic import (  # noqa: F401 - the fixtures
    ENGINES,
    TIGHT,
    WORKLOAD,
    alone,
    answer,
    assert_drained,
    engine,
    gist,
    prompts,
    roomy,
)
from tests.toys import tiny_checkpoint


@dataclass
class Scripted:
    """Offers what ``known`` says follows a history, wrong from some place on; garbage where nothing is known.

    right   the share of the drafts that are left as they are
    """

    right: float
    vocab_size: int
    known: dict[tuple[int, ...], list[list[int]]] = field(default_factory=dict)  # prompt -> its outputs
    random: random.Random = field(default_factory=lambda: random.Random(5))

    def allocate_kv(self, num_blocks: int, num_host_blocks: int) -> None: ...

    def follow(self, plan: Any, tokens: Any, row_len: Any) -> None: ...

    def propose(self, view: View) -> list[Draft]:
        histories = [view.tokens[row, :length].tolist() for row, length in zip(view.rows, view.lengths)]
        return [Draft(self._continue(history, int(want))) for history, want in zip(histories, view.want)]

    def _continue(self, history: list[int], want: int) -> list[int]:
        draft = [self.random.randrange(self.vocab_size) for _ in range(want)]
        for prompt, outputs in self.known.items():
            for output in outputs:
                text = [*prompt, *output]
                if text[: len(history)] == history and len(history) >= len(prompt):
                    ahead = text[len(history) : len(history) + want]
                    draft[: len(ahead)] = ahead
        return [t if self.random.random() < self.right else self.random.randrange(self.vocab_size) for t in draft]


def with_proposer(llm: LLM, proposer: Any) -> LLM:
    llm.engine.runner.proposer = proposer
    return llm


def speculation(k: int, adaptive: bool = False, **more: Any) -> dict[str, Any]:
    return {"speculative_config": {"method": "ngram", "num_speculative_tokens": k, "adaptive": adaptive} | more}


CASES: dict[str, tuple[float | None, int, dict[str, Any]]] = {  # who proposes (a share that is right), k, the engine
    "garbage": (0.0, 5, {}),
    "an oracle": (1.0, 8, {}),
    "half an oracle, blocks of 8": (0.6, 4, ENGINES["blocks of 8"]),
    "an oracle, little room, recompute": (0.9, 5, ENGINES["recompute"]),
    "an oracle, little room, swap": (0.9, 3, ENGINES["swap"]),
    "an oracle, run-ahead, swap": (0.9, 3, ENGINES["run-ahead, swap, blocks of 8"]),
    "an oracle, chunks of 7": (0.8, 6, ENGINES["chunks of 7"]),
    "prompt lookup": (None, 5, {}),
    "prompt lookup, run-ahead, no prefix cache": (None, 2, {"async_scheduling": True, "enable_prefix_caching": False}),
    "prompt lookup, adaptive": (None, 5, {"adaptive": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_workload_is_answered_the_same(engine, alone, prompts, case):  # noqa: F811
    right, k, settings_ = CASES[case]
    adaptive = settings_.get("adaptive", False)
    llm = engine(**speculation(k, adaptive), **{n: v for n, v in settings_.items() if n != "adaptive"})
    if right is not None:
        known = {
            tuple(prompts[name]["prompt_token_ids"]): [c[2] for c in alone[name][0]]
            for name in WORKLOAD
            if "embedding" not in name
        }
        with_proposer(llm, Scripted(right, llm.engine.model.vocab_size, known))
    assert answer(llm, prompts, list(WORKLOAD)) == alone
    stats = llm.stats()
    assert stats.num_drafts >= (1 if adaptive else 5)
    assert sum(stats.accepted_by_position) == stats.num_accepted_tokens <= stats.num_draft_tokens
    if right is not None and right > 0.5:
        assert stats.num_accepted_tokens > 20
    if "recompute" in case or "swap" in case:
        assert stats.num_preemptions > 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Callable[..., LLM]:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny"), eos_token_id=None)
    defaults = {"dtype": "float32", "device": "cpu", "backend": "reference", "batch_invariant": True}
    return lambda **more: LLM(str(folder), **defaults | {"max_model_len": 96, "num_blocks": 100} | more)


@pytest.fixture(scope="module")
def plain(tiny) -> LLM:
    return tiny(enable_prefix_caching=False)


any_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.5]),
    top_p=st.sampled_from([1.0, 0.9, 0.5]),
    top_k=st.sampled_from([0, 1, 5, 50]),
    min_p=st.sampled_from([0.0, 0.1]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.8, -0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    n=st.sampled_from([1, 1, 2, 3]),
    seed=st.integers(0, 5),
    max_tokens=st.integers(1, 30),
    min_tokens=st.sampled_from([0, 1]),
    logprobs=st.sampled_from([None, 0, 2]),
    prompt_logprobs=st.sampled_from([None, None, 1]),
    stop_token_ids=st.sampled_from([(), tuple(range(0, 384, 20))]),
    logit_bias=st.sampled_from([None, {5: 4.0, 300: -100.0}]),
    bad_words_token_ids=st.sampled_from([(), ((7,), (9, 11), (5, 5))]),
    speculative=st.sampled_from([None, None, True, False]),
)
any_prompt = st.lists(st.integers(1, 6), min_size=1, max_size=40)


@settings(max_examples=25)
@given(st.data())
def test_any_request_in_any_company_is_answered_the_same(tiny, plain, data):
    requests = data.draw(st.lists(st.tuples(any_prompt, any_params), min_size=1, max_size=5))
    truth = [gist(plain.generate(prompt, params, use_tqdm=False)[0]) for prompt, params in requests]
    block_size = data.draw(st.sampled_from([1, 4, 16]))
    llm = tiny(
        **speculation(data.draw(st.integers(1, 8)), data.draw(st.booleans())),
        block_size=block_size,
        num_blocks=96 // block_size + 1 + data.draw(st.sampled_from([0, 2, 40])),
        max_num_batched_tokens=data.draw(st.sampled_from([5, 23, 200])),
        max_num_seqs=data.draw(st.integers(3, 8)),
        enable_prefix_caching=data.draw(st.booleans()),
        preemption_mode=data.draw(st.sampled_from(["recompute", "swap"])),
        async_scheduling=data.draw(st.booleans()),
    )
    right = data.draw(st.sampled_from([None, 0.0, 0.5, 0.9, 1.0]))
    if right is not None:
        known = {tuple(prompt): [c[2] for c in got] for (prompt, _), (got, _) in zip(requests, truth)}
        with_proposer(llm, Scripted(right, 384, known))
    outputs = llm.generate([p for p, _ in requests], [s for _, s in requests], use_tqdm=False)
    assert [gist(output) for output in outputs] == truth
    assert_drained(llm)
    for output, (_, params) in zip(outputs, requests):
        if params.speculative is False:
            assert output.metrics.num_draft_tokens == 0


@settings(max_examples=10)
@given(st.data())
def test_suffix_lookup_knows_the_second_time_and_changes_nothing(tiny, plain, data):
    """Everything is asked twice in one engine, the second time next to what remembers the first."""
    requests = data.draw(st.lists(st.tuples(any_prompt, any_params), min_size=1, max_size=4))
    truth = [gist(plain.generate(prompt, params, use_tqdm=False)[0]) for prompt, params in requests]
    suffix = {"method": "suffix", "num_speculative_tokens": data.draw(st.integers(1, 8)), "adaptive": False}
    llm = tiny(
        speculative_config=suffix | {"prompt_lookup_min": 1},
        block_size=4,
        num_blocks=25 + data.draw(st.sampled_from([0, 3, 80])),
        max_num_seqs=data.draw(st.integers(3, 8)),
        preemption_mode=data.draw(st.sampled_from(["recompute", "swap"])),
        async_scheduling=data.draw(st.booleans()),
    )
    for _ in range(2):
        outputs = llm.generate([p for p, _ in requests], [s for _, s in requests], use_tqdm=False)
        assert [gist(output) for output in outputs] == truth
    assert_drained(llm)


def test_suffix_lookup_gains_from_the_outputs_of_others_even_among_preemptions(tiny, plain):
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=60, ignore_eos=True)
    requests = [[i, 2, 3] for i in range(1, 5)]
    truth = [plain.generate(p, params, use_tqdm=False)[0].outputs[0].token_ids for p in requests]
    suffix = {"method": "suffix", "num_speculative_tokens": 6, "adaptive": False}
    llm = tiny(speculative_config=suffix, block_size=4, num_blocks=40, preemption_mode="swap")
    accepted = []
    for _ in range(2):
        outputs = llm.generate(requests, params, use_tqdm=False)
        assert [o.outputs[0].token_ids for o in outputs] == truth
        accepted.append(llm.stats().num_accepted_tokens)
    assert llm.stats().num_preemptions > 0
    assert accepted[1] - accepted[0] > max(100, 2 * accepted[0])


FORMS = {
    "json": StructuredOutputsParams(json={"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}}),
    "choice": StructuredOutputsParams(choice=["one", "two or three", "ten"]),
    "regex": StructuredOutputsParams(regex="[ab]{3,9}( c+)?"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("right", [0.0, 0.8, 1.0])
def test_a_grammar_has_a_mask_for_every_drafted_position(tiny, form, right):
    """The end of the text is the case: the grammar ends it, a stop token, max_tokens, all within one accepted run."""
    requests = [
        SamplingParams(temperature=t, seed=seed, max_tokens=length, structured_outputs=FORMS[form], **more)
        for t, seed, length in ((0, 0, 12), (1.0, 1, 30), (1.5, 2, 30), (1.5, 3, 7))
        for more in ({}, {"min_tokens": 5}, {"ignore_eos": True}, {"logprobs": 1, "bad_words_token_ids": ((70,),)})
    ]
    prompt = [5, 6, 7, 5, 6]
    plain = tiny(enable_prefix_caching=False, max_num_seqs=16)
    truth = [gist(plain.generate(prompt, params, use_tqdm=False)[0]) for params in requests]
    known = {tuple(prompt): [c[2] for got, _ in truth for c in got]}
    llm = with_proposer(tiny(**speculation(6)), Scripted(right, 384, known))
    outputs = llm.generate([prompt] * len(requests), requests, use_tqdm=False)
    assert [gist(output) for output in outputs] == truth
    if right:
        assert llm.stats().num_accepted_tokens > 10


def test_an_oracle_needs_one_step_for_k_plus_1_tokens(tiny, plain):
    params = SamplingParams(temperature=0.8, seed=1, max_tokens=41)
    truth = plain.generate([1, 2, 3], params, use_tqdm=False)[0].outputs[0].token_ids
    llm = with_proposer(tiny(**speculation(7)), Scripted(1.0, 384, {(1, 2, 3): [truth]}))
    (output,) = llm.generate([1, 2, 3], params, use_tqdm=False)
    assert output.outputs[0].token_ids == truth
    metrics, stats = output.metrics, llm.stats()
    assert metrics.num_accepted_tokens == metrics.num_draft_tokens == stats.num_accepted_tokens == 35
    assert stats.num_drafts == 5 and stats.accepted_by_position == [5] * 7  # 1 of the prompt, then 5 times 8


def test_nobody_is_preempted_for_the_sake_of_drafts(tiny, plain):
    """Both fit without drafts, exactly."""
    params = SamplingParams(temperature=0, max_tokens=33, ignore_eos=True)
    llm = with_proposer(tiny(**speculation(8), block_size=4, num_blocks=25), Scripted(0.0, 384))
    requests = [[1] * 16, [2] * 16]
    outputs = llm.generate(requests, params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in outputs] == [
        plain.generate(p, params, use_tqdm=False)[0].outputs[0].token_ids for p in requests
    ]
    assert llm.stats().num_preemptions == 0 and llm.stats().num_draft_tokens > 0


def test_stop_strings_inside_an_accepted_run(engine, prompts, alone):  # noqa: F811
    """The text ends where it would have; what was accepted behind it is not given out."""
    name = "stop string, n=3"
    llm = engine(**speculation(8), **TIGHT)
    known = {tuple(prompts[name]["prompt_token_ids"]): [[*c[2], 9, 9, 9, 9, 9] for c in alone[name][0]]}
    with_proposer(llm, Scripted(1.0, llm.engine.model.vocab_size, known))
    assert answer(llm, prompts, [name])[name] == alone[name]


def test_the_trace_follows_the_blocks_and_tells_the_drafts(tiny, tmp_path):
    """Blocks that were reserved for rejected drafts go back, and the recorded tables lose them as well."""
    llm = tiny(**speculation(6), trace=str(tmp_path), block_size=2)
    with_proposer(llm, Scripted(0.7, 384, {}))
    engine, checks = llm.engine, 0  # noqa: F811
    for seed in range(3):
        engine.add_request([1 + seed, 2, 3], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    while engine.has_unfinished():
        engine.step()
        for seq in engine.scheduler.running:
            recorded = engine._watch._tables.rows[seq.row]
            assert recorded[: len(seq.table.blocks)] == seq.table.blocks
            checks += 1
    llm.close()
    steps = read_trace(tmp_path / "steps.jsonl").steps
    planned = sum(s["n_draft"] for step in steps for s in step["plan"]["seqs"])
    accepted = sum(count for step in steps for count in step["result"]["accepted"].values())
    stats = llm.stats()
    assert checks > 10 and (planned, accepted) == (stats.num_draft_tokens, stats.num_accepted_tokens)
