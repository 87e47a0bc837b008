"""DESIGN §2 end to end on the embedded model: what may change the time may never change the text.

Every request of a small workload (sampled, forked, penalised, stopped, ranked, beams, pooled) is first answered alone,
by an engine with plenty of room. Then other engines answer all of it at once, with other neighbours, chunks, blocks,
caches, preemptions and orders. With ``batch_invariant=True`` token ids, log-probabilities and embeddings must be the
same bits; without it the tokens must be the same up to the first near-tie of the two best perturbed scores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import LLM, BeamSearchParams, PoolingParams, RequestError, SamplingParams, StructuredOutputsParams
from quire.prompts import Prepared
from quire.reference.control.params import RequestParams
from quire.reference.control.philox import gumbel
from quire.reference.outputs import RequestOutput

MAX_LEN = 192
BLOCK_BYTES = 2 * 8 * 4 * 64 * 4 * 16  # of pocket in float32: K and V, layers, heads, head size, bytes, slots
TIGHT = {"num_blocks": MAX_LEN // 16 + 1}  # one longest sequence and the null block
SWAP = {"preemption_mode": "swap", "swap_space": 1.0}

SYSTEM = (
    "You are a helpful assistant who knows how an inference engine works: its scheduler, its blocks of keys and values "
    "and its prefix cache. Answer in one sentence. The guest is called Mona and the code word is 8 1 5 2."
)
QUESTIONS = (
    "What is a KV cache?",
    "What is 12 + 30?",
    "Sort 5 3 9 1",
    "Tell me a story about a fox.",
    "Reverse the list 1 2 3",
    "What is a block table?",
)
GREEDY = SamplingParams(temperature=0, max_tokens=20, logprobs=2, prompt_logprobs=1)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, top_k=40, max_tokens=20, logprobs=0, seed=7)
BEAMS = BeamSearchParams(beam_width=3, max_tokens=10)
ANSWER = {"type": "object", "properties": {"sum": {"type": "integer", "maximum": 99}, "sure": {"type": "boolean"}}}
JSON = StructuredOutputsParams(json=ANSWER | {"required": ["sum", "sure"], "additionalProperties": False})
COLOURS = StructuredOutputsParams(choice=["red", "green", "blue, or nearly so"])


def changed(params: SamplingParams, **changes: Any) -> SamplingParams:
    return SamplingParams(**{name: getattr(params, name) for name in params.__dataclass_fields__} | changes)


# Each is (question, with the system prompt?, parameters). The stories go on until max_tokens, the others mostly end.
WORKLOAD: dict[str, tuple[int, bool, RequestParams]] = {
    "greedy": (0, False, GREEDY),
    "greedy, long prompt": (5, True, GREEDY),
    "greedy, story": (3, True, changed(GREEDY, max_tokens=40)),
    "sampled": (3, False, SAMPLED),
    "sampled, seed from the engine": (3, True, changed(SAMPLED, seed=None)),
    "n=4": (3, False, changed(SAMPLED, n=4, ignore_eos=True, prompt_logprobs=0)),
    "best of 3": (3, True, changed(SAMPLED, n=1, best_of=3, logprobs=1)),
    "penalties": (3, False, changed(SAMPLED, presence_penalty=0.7, frequency_penalty=0.4, repetition_penalty=1.2)),
    "min_tokens, bias": (1, True, changed(SAMPLED, min_tokens=16, logit_bias={17: 3.0, 40: -100.0}, min_p=0.01)),
    "stop string, n=3": (3, False, changed(SAMPLED, n=3, stop=["was a", "One day", "named M"], max_tokens=30)),
    "bad words": (0, False, changed(GREEDY, bad_words=["key", "value"], include_stop_str_in_output=True, stop="e")),
    "JSON": (1, True, changed(SAMPLED, structured_outputs=JSON, max_tokens=40, presence_penalty=0.5)),
    "choice, n=3": (0, False, changed(SAMPLED, structured_outputs=COLOURS, n=3, temperature=2.0, logprobs=1)),
    "beams": (1, False, BEAMS),
    "beams, story": (3, False, BEAMS),
    "embedding of all": (4, True, PoolingParams()),
    "embedding of the last": (1, True, PoolingParams(pooling="last", normalize=False, dimensions=50)),
}


@pytest.fixture(scope="module")
def prompts(roomy) -> dict[str, Any]:
    chats = {}
    for name, (question, long, _) in WORKLOAD.items():
        system = [{"role": "system", "content": SYSTEM}] if long else []
        chats[name] = roomy.render_chat([*system, {"role": "user", "content": QUESTIONS[question]}])
    return chats


@pytest.fixture(scope="module")
def engine() -> Callable[..., LLM]:
    """Makes an engine with the given settings. The fast plane's tests have a fixture of this name as well."""
    defaults = {"dtype": "float32", "device": "cpu", "backend": "reference", "max_model_len": MAX_LEN}
    return lambda **settings: LLM("pocket", **defaults | {"batch_invariant": True} | settings)


@pytest.fixture(scope="module")
def roomy(engine) -> LLM:
    return engine(enable_prefix_caching=False, num_blocks=400)


@pytest.fixture(scope="module")
def alone(roomy, prompts) -> dict[str, Any]:
    """What each request gets with no other in the engine: the truth that everything below is held against."""
    return {name: answer(roomy, prompts, [name])[name] for name in WORKLOAD}


def seeded(name: str) -> RequestParams:
    """A request without a seed gets the engine's and its own number: the same here, where the number is another."""
    params = WORKLOAD[name][2]
    return changed(params, seed=1234) if isinstance(params, SamplingParams) and params.seed is None else params


def gist(output: RequestOutput) -> Any:
    """All that a request was given, for comparison bit by bit."""
    completions = [
        (c.index, c.text, c.token_ids, c.cumulative_logprob, c.logprobs, c.finish_reason, c.stop_reason)
        for c in output.outputs
    ]
    return completions, output.embedding or output.prompt_logprobs


def prepared(llm: LLM, prompts: dict[str, Any], names: Sequence[str], priority: Any = None) -> list[Prepared]:
    """Requests of all kinds for one run: text and embeddings."""
    requests = []
    for name, own in zip(names, priority or [None] * len(names)):
        params = seeded(name)
        requests += llm._prepare([prompts[name]], params, own, pooling=isinstance(params, PoolingParams))
    return requests


def answer(llm: LLM, prompts: dict[str, Any], names: Sequence[str], priority: Any = None) -> dict[str, Any]:
    outputs = llm._run_to_end(prepared(llm, prompts, names, priority), use_tqdm=False)
    assert_drained(llm)
    return {name: gist(output) for name, output in zip(names, outputs)}


def assert_drained(llm: LLM) -> None:
    stats = llm.stats()
    assert (stats.num_running, stats.num_waiting, stats.blocks_used, stats.host_blocks_used) == (0, 0, 0, 0)
    assert not llm.engine.scheduler.groups and not llm._boxes and not llm._processor._states
    assert not len(llm.engine._structured._matchers)


def test_the_workload_does_what_it_is_there_for(alone):
    reasons = {name: [c[5] for c in completions] for name, (completions, _) in alone.items()}
    assert reasons["greedy"] == ["stop"] and reasons["greedy, story"] == ["length"]
    assert {c[6] for c in alone["stop string, n=3"][0]} & {"was a", "One day", "named M"}
    assert len({tuple(c[2]) for c in alone["n=4"][0]}) == 4
    assert len(alone["min_tokens, bias"][0][0][2]) >= 16
    assert not {"key", "value"} & set(alone["bad words"][0][0][1].split())
    assert set(json.loads(alone["JSON"][0][0][1])) == {"sum", "sure"}
    assert {c[1] for c in alone["choice, n=3"][0]} <= set(COLOURS.choice)
    prompt_logprobs = alone["greedy, long prompt"][1]
    assert prompt_logprobs[0] is None and all(entry for entry in prompt_logprobs[1:])


ENGINES: dict[str, dict[str, Any]] = {
    "neighbours": {},
    "no prefix cache": {"enable_prefix_caching": False},
    "chunks of 7": {"max_num_batched_tokens": 7},
    "chunks of 50": {"max_num_batched_tokens": 50},
    "blocks of 8": {"block_size": 8},
    "blocks of 32": {"block_size": 32},
    "recompute": TIGHT | {"max_num_batched_tokens": 64},
    "recompute, no prefix cache": TIGHT | {"enable_prefix_caching": False, "block_size": 8, "num_blocks": 25},
    "swap": TIGHT | SWAP | {"max_num_batched_tokens": 64},
    "little swap space": TIGHT | SWAP | {"swap_space": 6 * BLOCK_BYTES / 2**30},
    "run-ahead": {"async_scheduling": True},
    "run-ahead, recompute, chunks": TIGHT | {"async_scheduling": True, "max_num_batched_tokens": 40},
    "run-ahead, swap, blocks of 8": SWAP | {"async_scheduling": True, "block_size": 8, "num_blocks": 25},
    "no chunked prefill, few rows": {"enable_chunked_prefill": False, "max_num_seqs": 5},
}


@pytest.mark.parametrize("name", ENGINES)
def test_bit_by_bit_the_same(engine, name, alone, prompts):
    llm = engine(**ENGINES[name])
    assert answer(llm, prompts, list(WORKLOAD)) == alone
    stats = llm.stats()
    if "recompute" in name or "swap" in name:
        assert stats.num_preemptions > 0
    if "swap" in name:
        assert stats.num_swapped_out > 0 and stats.num_swapped_in > 0
    if not llm.config.enable_prefix_caching:
        assert stats.prefix_hits == 0


@pytest.mark.parametrize("name", ["neighbours", "blocks of 8", "run-ahead, recompute, chunks"])
def test_bit_by_bit_the_same_in_another_order_on_a_warm_cache(engine, name, alone, prompts):
    llm = engine(**ENGINES[name])
    llm.generate(list(prompts.values()), SamplingParams(max_tokens=1), use_tqdm=False)
    cold = llm.stats().prefix_hits
    assert answer(llm, prompts, list(WORKLOAD)[::-1]) == alone
    assert llm.stats().prefix_hits > cold
    if "recompute" in name:
        assert llm.stats().num_preemptions > 0


def test_priorities_decide_when_and_not_what(engine, alone, prompts):
    llm = engine(scheduling_policy="priority", max_num_seqs=4, **TIGHT)
    names = list(WORKLOAD)
    priorities = [(7 * i) % 5 - 2 for i in range(len(names))]
    assert answer(llm, prompts, names, priorities) == alone
    # An urgent one overtakes, by preemption too: the late request is served while the early ones wait.
    slow = llm.stream([prompts["greedy, story"]] * 3, seeded("greedy, story"), priority=5)
    next(slow)
    assert gist(llm.generate(prompts["beams"], BEAMS, use_tqdm=False, priority=-1)[0]) == alone["beams"]
    outputs = {o.prompt_index for o in slow if o.finished}
    assert outputs == {0, 1, 2}
    assert_drained(llm)


def test_seeds_of_the_engine_depend_on_the_order_of_arrival_only(engine, prompts):
    name = "sampled, seed from the engine"
    texts = []
    for settings_ in ({}, {"max_num_batched_tokens": 30, "block_size": 8, "async_scheduling": True}):
        llm = engine(seed=5, **settings_)
        outputs = llm.generate([prompts[name]] * 3, WORKLOAD[name][2], use_tqdm=False)
        texts.append([gist(o)[0] for o in outputs])
    assert texts[0] == texts[1]
    assert len({c[0][1] for c in texts[0]}) == 3  # three requests, three seeds


@settings(max_examples=5)
@given(st.data())
def test_any_mixture_with_aborts_and_bad_requests(engine, alone, prompts, data):
    """Some requests stream, some are abandoned midway, some are refused: the others do not notice."""
    block_size = data.draw(st.sampled_from([4, 8, 16]))
    llm = engine(
        block_size=block_size,
        num_blocks=MAX_LEN // block_size + 1 + data.draw(st.sampled_from([0, 3, 60])),
        max_num_batched_tokens=data.draw(st.integers(5, 90)),
        max_num_seqs=data.draw(st.integers(4, 12)),
        enable_prefix_caching=data.draw(st.booleans()),
        async_scheduling=data.draw(st.booleans()),
        preemption_mode=data.draw(st.sampled_from(["recompute", "swap"])),
    )
    names = data.draw(st.permutations(list(WORKLOAD)))[:6]
    victims = data.draw(st.lists(st.sampled_from([n for n in WORKLOAD if "embedding" not in n]), max_size=3))
    doomed = []
    for victim in victims:
        stream = llm.stream(prompts[victim], changed_to_stream(seeded(victim)))
        doomed.append((stream, data.draw(st.integers(1, 6))))
    for stream, steps in doomed:  # all are admitted and run among each other
        for _, _ in zip(range(steps), stream):
            pass
    with pytest.raises(RequestError):
        llm.generate([prompts["greedy"], []], GREEDY, use_tqdm=False)
    running = llm._run(prepared(llm, prompts, names), stream=False)
    for stream, _ in doomed[1:]:
        stream.close()
    got = {}
    for output in running:
        got[names[output.prompt_index]] = gist(output)
        if doomed:
            doomed.pop()[0].close()
        with pytest.raises(RequestError):
            llm.generate("x", SamplingParams(n=99), use_tqdm=False)
    assert got == {name: alone[name] for name in names}
    for stream, _ in doomed:
        stream.close()
    assert_drained(llm)


def changed_to_stream(params: Any) -> Any:
    return changed(params, best_of=None) if isinstance(params, SamplingParams) else params


@pytest.mark.parametrize("ahead", [False, True])
def test_a_stream_says_what_generate_says(engine, alone, prompts, ahead):
    llm = engine(async_scheduling=ahead, max_num_batched_tokens=60)
    names = [n for n in WORKLOAD if not {"best", "beams", "beams,", "embedding"} & set(n.split())]
    pieces: dict[tuple[str, int], list[Any]] = {}
    prompt_logprobs: dict[str, Any] = {}
    for output in llm.stream([prompts[n] for n in names], [seeded(n) for n in names]):
        name = names[output.prompt_index]
        prompt_logprobs[name] = output.prompt_logprobs
        for c in output.outputs:
            text, token_ids, logprobs = pieces.setdefault((name, c.index), ["", [], []])[:3]
            pieces[name, c.index] = [text + c.text, token_ids + c.token_ids, logprobs + c.logprobs, c.finish_reason]
    for name in names:
        completions, asked = alone[name]
        assert [pieces[name, c[0]] for c in completions] == [[c[1], c[2], c[4], c[5]] for c in completions]
        assert prompt_logprobs[name] == asked
    assert_drained(llm)


# ------------------------------------------------------------------------------------- without batch_invariant

TOLERANCE = 2e-4  # float32 logits of different summation orders differ by a few 1e-5


def clear_positions(token_ids: list[int], logprobs: list[dict], params: SamplingParams, prompt_len: int) -> int:
    """How many positions come before the first near-tie, by the truth's own 50 likeliest tokens.

    The perturbed score is logprob / T + noise, over the tokens that top-k and top-p keep, widened by the tolerance.
    """
    for i, entry in enumerate(logprobs):
        ranked = sorted(((p.logprob, t) for t, p in entry.items() if p.rank <= 50), reverse=True)
        scores = np.array([p for p, _ in ranked])
        if params.temperature > 0:
            scores = scores / params.temperature
            kept = scores >= scores[params.top_k - 1] - TOLERANCE
            weights = np.exp(scores - scores[0]) * kept
            before = np.cumsum(weights) - weights
            kept &= before / weights.sum() < params.top_p + TOLERANCE
            tokens = np.array([t for _, t in ranked])
            scores = (scores + gumbel(params.seed, 0, prompt_len + i, tokens))[kept]
        best = np.sort(scores)[::-1]
        if len(best) > 1 and best[0] - best[1] < TOLERANCE:
            return i
    return len(token_ids)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_without_invariance_equal_up_to_the_first_near_tie(engine, prompts, params):
    params = changed(params, logprobs=50, prompt_logprobs=None, max_tokens=32, ignore_eos=True)
    names = ["greedy", "greedy, long prompt", "greedy, story", "sampled", "beams"]
    plain = engine(batch_invariant=False, enable_prefix_caching=False, num_blocks=200)
    truth = [plain.generate(prompts[n], params, use_tqdm=False)[0] for n in names]
    compared = 0
    for name in ("neighbours", "chunks of 7", "run-ahead, recompute, chunks", "run-ahead, swap, blocks of 8", None):
        llm = engine(**ENGINES[name] | {"batch_invariant": False}) if name else engine()  # None: across the border
        for one, other in zip(truth, llm.generate([prompts[n] for n in names], params, use_tqdm=False)):
            (a,), (b,) = one.outputs, other.outputs
            until = clear_positions(a.token_ids, a.logprobs, params, len(one.prompt_token_ids))
            assert a.token_ids[:until] == b.token_ids[:until], (name, until)
            compared += until
    assert compared > 0.8 * 32 * len(names) * 5  # else the tolerance hides everything


# ----------------------------------------------------------------------------------------- against transformers


@pytest.fixture(scope="module")
def hf(roomy):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(roomy.assets.path, dtype=torch.float32).eval()


@torch.inference_mode()
def test_64_greedy_tokens_are_those_of_transformers(engine, roomy, prompts, hf):
    names = ["greedy", "greedy, long prompt", "greedy, story", "sampled", "beams"]
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True, logprobs=2)
    compared = 0
    for output in engine(batch_invariant=False).generate([prompts[n] for n in names], params, use_tqdm=False):
        ids = torch.tensor([output.prompt_token_ids])
        config = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
        theirs = hf.generate(ids, attention_mask=torch.ones_like(ids), **config)[0, ids.shape[1] :].tolist()
        (ours,) = output.outputs
        until = clear_positions(ours.token_ids, ours.logprobs, params, ids.shape[1])
        assert ours.token_ids[:until] == theirs[:until]
        compared += until
    assert compared > 0.8 * 64 * len(names)


@torch.inference_mode()
def brute_force_beams(
    model: Any, prompt: list[int], params: BeamSearchParams, stops: set[int]
) -> list[tuple[float, list[int]]]:
    """Beam search with nothing clever in it: every beam from scratch, every token scored, no early end."""
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    done: list[tuple[float, list[int]]] = []
    for step in range(params.max_tokens):
        grown = []
        for total, output in live:
            scores = model(torch.tensor([prompt + output])).logits[0, -1].log_softmax(-1).tolist()
            grown += [(total + score, [*output, token]) for token, score in enumerate(scores)]
        grown.sort(key=lambda h: -h[0])
        live = [h for h in grown if h[1][-1] not in stops][: params.beam_width]
        worst = live[-1][0]
        done += [h for h in grown[: 2 * params.beam_width] if h[1][-1] in stops]
        if step == params.max_tokens - 1:
            done += [h for h in live if h[0] >= worst]
    done.sort(key=lambda h: -h[0] / math.pow(len(h[1]), params.length_penalty))
    return done[: params.beam_width]


@pytest.mark.parametrize("width, penalty", [(2, 1.0), (3, 0.0), (4, 2.0)])
def test_beams_are_those_of_a_brute_force_search(roomy, prompts, hf, width, penalty):
    for name in ("beams", "beams, story"):
        params = BeamSearchParams(beam_width=width, max_tokens=12, length_penalty=penalty)
        (ours,) = roomy.beam_search(prompts[name], params)
        stops = set(roomy.engine.model.eos_token_ids)
        theirs = brute_force_beams(hf, prompts[name]["prompt_token_ids"], params, stops)
        assert [s.output_token_ids for s in ours.sequences] == [tokens for _, tokens in theirs]
        assert [s.cum_logprob for s in ours.sequences] == pytest.approx([total for total, _ in theirs], abs=1e-3)
