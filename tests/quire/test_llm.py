"""``LLM`` on a tiny random model: every way of asking, what comes back, in which order, and what is cleaned up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from quire import LLM, BeamSearchParams, PoolingParams, RequestError, SamplingParams
from tests.toys import byte_tokenizer

TOKENIZER = byte_tokenizer()
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def text_of(token_ids: list[int]) -> str:
    return TOKENIZER.decode(token_ids, skip_special_tokens=True).rstrip("\ufffd")


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_outputs_have_vllms_fields(llm):
    (output,) = llm.generate("the quick brown", GREEDY)
    assert output.prompt == "the quick brown" and output.prompt_token_ids == ids_of("the quick brown")
    assert output.finished and output.prompt_logprobs is None and output.num_cached_tokens == 0
    (completion,) = output.outputs
    assert completion.index == 0 and len(completion.token_ids) == 12
    assert completion.text == text_of(completion.token_ids)
    assert completion.finish_reason == "length" and completion.stop_reason is None and completion.finished()
    assert completion.logprobs is None and completion.cumulative_logprob is None
    metrics = output.metrics
    assert metrics.arrival_time <= metrics.scheduled_time < metrics.first_token_time
    assert metrics.first_token_time < metrics.last_token_time <= metrics.finished_time
    assert metrics.num_generation_tokens == 12 and metrics.time_to_first_token > 0


def test_prompts_in_every_form_give_the_same(llm):
    ids = ids_of("one two three")
    forms = [
        "one two three", ids, tuple(ids), np.array(ids), {"prompt": "one two three"}, {"prompt_token_ids": ids},
        {"prompt": "shown only", "prompt_token_ids": ids}, {"prompt": "one two three", "cache_salt": "mine"},
    ]  # fmt: skip
    alone = [llm.generate(form, GREEDY)[0] for form in forms]
    together = llm.generate(forms, GREEDY)
    assert len({tuple(o.outputs[0].token_ids) for o in [*alone, *together]}) == 1
    assert together[1].prompt is None and together[6].prompt == "shown only"
    assert llm.generate([], GREEDY) == []


def test_a_cache_salt_keeps_prompts_apart(llm):
    prompt = ids_of("the lazy dog jumps over the quick brown fox")
    llm.reset_prefix_cache()
    cached = [
        llm.generate({"prompt_token_ids": prompt} | salt, GREEDY)[0].num_cached_tokens
        for salt in ({}, {}, {"cache_salt": "a"}, {"cache_salt": "a"})
    ]
    assert cached[0] == cached[2] == 0 and cached[1] == cached[3] > 0


def test_outputs_are_in_the_order_of_the_prompts_with_parameters_of_their_own(llm):
    lengths = [9, 2, 30, 1, 17, 4]
    prompts = [f"{'the ' * n}{n}" for n in lengths]
    outputs = llm.generate(prompts, [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in lengths])
    assert [o.prompt for o in outputs] == prompts
    assert [len(o.outputs[0].token_ids) for o in outputs] == lengths
    assert [o.prompt_index for o in outputs] == list(range(6))


def collect(stream) -> dict[tuple[int, int], dict]:
    """What a stream gave, by prompt and completion."""
    found: dict[tuple[int, int], dict] = {}
    for output in stream:
        for completion in output.outputs:
            kept = found.setdefault((output.prompt_index, completion.index), {"text": "", "ids": [], "pieces": 0})
            assert "reason" not in kept, "a completion went on after its end"
            kept["text"] += completion.text
            kept["ids"] += completion.token_ids
            kept["pieces"] += 1
            if completion.finished():
                kept["reason"] = (completion.finish_reason, completion.stop_reason)
        if output.finished:
            assert all("reason" in kept for (i, _), kept in found.items() if i == output.prompt_index)
    return found


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams(max_tokens=40, seed=3),
        SamplingParams(max_tokens=40, seed=3, n=3, stop=["a", "th", "\x0f"]),
        SamplingParams(max_tokens=40, seed=4, n=2, stop=["e"], include_stop_str_in_output=True),
        SamplingParams(max_tokens=40, seed=5, temperature=2.0, skip_special_tokens=False),
    ],
)
@pytest.mark.parametrize("ahead", [False, True])
def test_a_stream_adds_up_to_the_answer_without_streaming(checkpoint, params, ahead):
    llm = LLM(str(checkpoint), max_model_len=512, num_blocks=200, block_size=4, async_scheduling=ahead)
    prompts = ["the quick", "naïve café 你好", "Stop!"]
    whole = {
        (o.prompt_index, c.index): {"text": c.text, "ids": c.token_ids, "reason": (c.finish_reason, c.stop_reason)}
        for o in llm.generate(prompts, params)
        for c in o.outputs
    }
    streamed = collect(llm.stream(prompts, params))
    assert max(kept.pop("pieces") for kept in streamed.values()) > 3
    assert streamed == whole
    assert not llm.engine.scheduler.has_unfinished()


def test_a_stop_string_cuts_text_tokens_and_logprobs(llm):
    full = llm.generate("the quick", GREEDY)[0].outputs[0]
    at = len(full.text) // 2
    stop = full.text[at : at + 2]
    start = full.text.find(stop)
    for include in (False, True):
        params = SamplingParams(
            temperature=0, max_tokens=12, ignore_eos=True, stop=["never", stop], logprobs=1,
            include_stop_str_in_output=include,
        )  # fmt: skip
        cut = llm.generate("the quick", params)[0].outputs[0]
        assert cut.text == full.text[: start + (len(stop) if include else 0)]
        assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
        assert cut.token_ids == full.token_ids[: len(cut.token_ids)] and len(cut.logprobs) == len(cut.token_ids)
        # The last token is the one that completed the stop string.
        assert stop in text_of(cut.token_ids) and stop not in text_of(cut.token_ids[:-1])


def test_stop_tokens_end_the_text_before_themselves(llm):
    full = llm.generate("the quick", GREEDY)[0].outputs[0]
    token = full.token_ids[4]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=[token])
    cut = llm.generate("the quick", params)[0].outputs[0]
    first = full.token_ids.index(token)
    assert cut.token_ids == full.token_ids[: first + 1] and cut.text == text_of(cut.token_ids[:-1])
    assert (cut.finish_reason, cut.stop_reason) == ("stop", token)
    # The end-of-sequence token is not named as a reason.
    force = SamplingParams(max_tokens=5, allowed_token_ids=[0])
    ended = llm.generate("the quick", force)[0].outputs[0]
    assert (ended.token_ids, ended.text, ended.finish_reason, ended.stop_reason) == ([0], "", "stop", None)


def test_logprobs(llm):
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=2, prompt_logprobs=1)
    (output,) = llm.generate("the quick brown", params)
    (completion,) = output.outputs
    assert len(completion.logprobs) == 3
    total = 0.0
    for token, entry in zip(completion.token_ids, completion.logprobs):
        assert next(iter(entry)) == token and entry[token].rank == 1 and len(entry) == 2
        assert entry[token].decoded_token == TOKENIZER.decode([token])
        assert sorted((p.logprob for p in entry.values()), reverse=True) == [p.logprob for p in entry.values()]
        total += entry[token].logprob
    assert completion.cumulative_logprob == pytest.approx(total)
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for token, entry in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:]):
        assert token in entry and entry[token].rank >= 1
    # One with a rank beyond the asked ones still comes along.
    sampled = llm.generate("x", SamplingParams(max_tokens=20, temperature=3, seed=1, logprobs=0))[0].outputs[0]
    assert all(list(entry) == [token] for token, entry in zip(sampled.token_ids, sampled.logprobs))


def test_parallel_samples_differ_and_share_blocks(llm):
    llm.reset_prefix_cache()
    copies = llm.stats().num_copies
    params = SamplingParams(n=4, max_tokens=10, seed=1, ignore_eos=True)
    (output,) = llm.generate("the quick brown fox jumps", params)
    assert [c.index for c in output.outputs] == [0, 1, 2, 3]
    assert len({tuple(c.token_ids) for c in output.outputs}) == 4
    assert llm.stats().num_copies > copies
    again = llm.generate("the quick brown fox jumps", params)[0]
    assert [c.token_ids for c in again.outputs] == [c.token_ids for c in output.outputs]


def test_best_of_returns_the_likeliest(llm):
    shared = {"max_tokens": 6, "seed": 1, "ignore_eos": True}
    every = llm.generate("the", SamplingParams(n=5, logprobs=0, **shared))[0].outputs
    best = llm.generate("the", SamplingParams(n=2, best_of=5, **shared))[0].outputs
    expected = sorted(every, key=lambda c: -c.cumulative_logprob)[:2]
    assert [c.token_ids for c in best] == [c.token_ids for c in expected]
    assert [c.index for c in best] == [0, 1] and best[0].logprobs is None and best[0].cumulative_logprob is None
    with pytest.raises(RequestError, match="best_of=5"):
        llm.stream("the", SamplingParams(n=2, best_of=5))


def test_bad_words_do_not_appear(llm):
    free = llm.generate("the quick", GREEDY)[0].outputs[0]
    word = next(t for t in map(text_of, ([i] for i in free.token_ids)) if t.strip() and "\ufffd" not in t)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, bad_words=[word.strip()])
    assert word not in llm.generate("the quick", params)[0].outputs[0].text


def test_bad_words_as_token_ids_count_too_in_lists_and_beside_strings(llm):
    first, second = llm.generate("the", GREEDY)[0].outputs[0].token_ids[:2]
    for bad in ({"bad_words_token_ids": [[first, second]]}, {"bad_words_token_ids": [[first]], "bad_words": ["z"]}):
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, **bad)
        ids = llm.generate("the", params)[0].outputs[0].token_ids
        assert ids[:2] != [first, second]


def test_chat_uses_the_template(llm):
    talk = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    expected = "<|start|>system\nbe kind<|end|>\n<|start|>user\nhello<|end|>\n<|start|>assistant\n"
    one = llm.chat(talk, GREEDY)
    two = llm.chat([talk, talk[1:]], GREEDY)
    assert one[0].prompt == two[0].prompt == expected and len(two) == 2
    assert one[0].prompt_token_ids == ids_of(expected)
    assert one[0].outputs[0].token_ids == two[0].outputs[0].token_ids
    custom = llm.chat(talk, GREEDY, chat_template="{{ messages[1].content }} {{ mood }}",
                      chat_template_kwargs={"mood": "!"})  # fmt: skip
    assert custom[0].prompt == "hello !"
    assert llm.render_chat(talk, add_generation_prompt=False)["prompt"].endswith("hello<|end|>\n")
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "text", "text": "there"}]}]
    assert llm.render_chat(parts)["prompt"] == "<|start|>user\nhello\nthere<|end|>\n<|start|>assistant\n"
    begun = [*talk, {"role": "assistant", "content": "Well,"}]
    assert llm.chat(begun, GREEDY, continue_final_message=True)[0].prompt.endswith("assistant\nWell,")


def test_beam_search(llm):
    (output,) = llm.beam_search("the quick", BeamSearchParams(beam_width=3, max_tokens=5, ignore_eos=True))
    assert len(output.sequences) == 3
    scores = [s.cum_logprob for s in output.sequences]
    assert scores == sorted(scores, reverse=True)
    for sequence in output.sequences:
        assert sequence.tokens == ids_of("the quick") + sequence.output_token_ids
        assert sequence.text == "the quick" + sequence.output_text and len(sequence.output_token_ids) == 5
    # Its best hypothesis is at least as likely as the greedy one, and its score is what scoring it gives.
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=0)
    greedy = llm.generate("the quick", params)[0].outputs[0]
    assert scores[0] >= greedy.cumulative_logprob - 1e-4
    best = output.sequences[0]
    scored = llm.generate(best.tokens, SamplingParams(max_tokens=1, prompt_logprobs=0))[0].prompt_logprobs
    told = sum(e[t].logprob for t, e in zip(best.output_token_ids, scored[-5:]))
    assert told == pytest.approx(scores[0], abs=1e-3)


def test_two_calls_in_turn_get_each_their_own(llm):
    alone = collect(llm.stream(["the", "one"], GREEDY))
    stream = llm.stream(["the", "one"], GREEDY)
    first = [next(stream), next(stream)]
    middle = llm.generate("Stop!", GREEDY)[0]
    assert middle.outputs[0].token_ids == llm.generate("Stop!", GREEDY)[0].outputs[0].token_ids
    assert collect(iter([*first, *stream])) == alone


def test_threads_may_share_an_engine(checkpoint):
    llm = LLM(str(checkpoint), num_blocks=200, batch_invariant=True)
    expected = [o.outputs[0].text for o in llm.generate(["the", "one"], GREEDY)]
    answers: list[list[str]] = []

    def ask() -> None:
        for _ in range(5):
            answers.append([o.outputs[0].text for o in llm.generate(["the", "one"], GREEDY, use_tqdm=False)])

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert answers == [expected] * 20


def test_closing_a_stream_aborts_its_requests(llm):
    stream = llm.stream(["the", "one"], SamplingParams(max_tokens=500, ignore_eos=True))
    next(stream)
    assert llm.stats().num_running + llm.stats().num_waiting == 2
    stream.close()
    assert llm.stats().num_running + llm.stats().num_waiting == 0
    unstarted = llm.stream("the", GREEDY)  # nothing was admitted, so nothing has to be taken back
    assert not llm.engine.scheduler.has_unfinished()
    del unstarted


def test_closing_the_engine_ends_its_streams(checkpoint):
    llm = LLM(str(checkpoint), num_blocks=200)
    endless = SamplingParams(temperature=0, max_tokens=500, ignore_eos=True, n=2)
    stream = llm.stream(["a", "b"], [endless, BeamSearchParams(beam_width=2, max_tokens=500, ignore_eos=True)])
    next(stream)
    llm.close()
    assert llm.stats().blocks_used == 0 and not llm._boxes and not llm._processor._states
    last = {o.prompt_index: o for o in stream}
    assert all(o.finished for o in last.values()) and last.keys() == {0, 1}
    assert [c.finish_reason for c in last[0].outputs] == ["abort", "abort"] and last[1].outputs == []
    assert llm.generate("a", GREEDY)[0].finished  # the engine itself is as good as before


def test_a_request_that_was_ended_behind_its_back_is_an_error_and_no_endless_loop(llm):
    stream = llm.stream("a", GREEDY)
    llm.engine.abort_request(next(stream).request_id)
    with pytest.raises(RuntimeError, match="somebody else has ended"):
        next(stream)


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """Python's own handler, also where the tests were started in the background, which ignores Ctrl-C."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_ctrl_c_ends_the_call_and_not_the_engine(llm, ctrl_c_interrupts):
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        for _ in range(100):
            llm.generate(["the", "one"], SamplingParams(max_tokens=500, ignore_eos=True), use_tqdm=False)
    assert not llm.engine.scheduler.has_unfinished()
    assert len(llm.generate("the", GREEDY)[0].outputs[0].token_ids) == 12


def test_tokens_only(llm):
    params = SamplingParams(temperature=0, max_tokens=4, detokenize=False, ignore_eos=True)
    output = llm.generate([1, 2, 3], params)[0]
    assert output.outputs[0].text == "" and len(output.outputs[0].token_ids) == 4


def test_default_parameters_come_from_the_checkpoint(checkpoint):
    (checkpoint / "generation_config.json").write_text('{"temperature": 0.25, "top_k": 7, "max_new_tokens": 3}')
    try:
        defaults = LLM(str(checkpoint)).get_default_sampling_params()
        assert (defaults.temperature, defaults.top_k, defaults.max_tokens) == (0.25, 7, 3)
        own = LLM(str(checkpoint), generation_config="none")
        assert own.get_default_sampling_params() == SamplingParams()
        assert len(LLM(str(checkpoint)).generate("the")[0].outputs[0].token_ids) <= 3
    finally:
        (checkpoint / "generation_config.json").unlink()


def test_priority_decides_who_goes_first(checkpoint):
    llm = LLM(str(checkpoint), num_blocks=200, scheduling_policy="priority", max_num_seqs=1)
    finished = [o.prompt_index for o in llm.stream(["a", "b", "c"], GREEDY, priority=[2, 1, 0]) if o.finished]
    assert finished == [2, 1, 0]


def test_a_trace_is_written(checkpoint, tmp_path):
    from quire.reference.trace import read_trace

    with LLM(str(checkpoint), max_model_len=256, num_blocks=50, trace=str(tmp_path), trace_redact=True) as llm:
        llm.generate("the quick", GREEDY)
    read = read_trace(tmp_path / "steps.jsonl")
    assert read.header["model"] == str(checkpoint) and read.header["num_blocks"] == 50 and len(read.steps) >= 12
    assert (tmp_path / "steps.trace.json").is_file()


def test_embeddings_have_vllms_fields_and_the_order_of_the_prompts(llm):
    prompts = ["one two three", ids_of("the lazy dog"), {"prompt": "four"}]
    outputs = llm.embed(prompts, use_tqdm=False)
    assert [o.prompt for o in outputs] == ["one two three", None, "four"]
    assert [o.prompt_token_ids for o in outputs] == [ids_of("one two three"), ids_of("the lazy dog"), ids_of("four")]
    for output in outputs:
        assert output.finished and output.num_cached_tokens == 0 and len(output.outputs.embedding) == 64
        assert np.linalg.norm(output.outputs.embedding) == pytest.approx(1)
    alone = [llm.embed(prompt)[0].outputs.embedding for prompt in prompts]
    assert np.allclose([o.outputs.embedding for o in outputs], alone, atol=1e-5)
    assert llm.embed([]) == []


def test_dimensions_are_cut_before_the_length_becomes_one(llm):
    params = [PoolingParams(normalize=False), PoolingParams(normalize=False, dimensions=5), PoolingParams(dimensions=5)]
    whole, cut, unit = (np.array(o.outputs.embedding) for o in llm.embed(["one two three"] * 3, params))
    assert np.allclose(cut, whole[:5], atol=1e-5) and np.allclose(unit, cut / np.linalg.norm(cut), atol=1e-5)


def test_a_prompt_to_embed_may_fill_the_context_and_use_the_cache_for_its_last_position(llm):
    prompt = [1 + i % 250 for i in range(512)]
    llm.reset_prefix_cache()
    params = [PoolingParams(), PoolingParams(pooling="last"), PoolingParams()]
    outputs = [llm.embed(prompt, p)[0] for p in params]
    assert [o.num_cached_tokens for o in outputs] == [0, 512, 0]
    assert outputs[0].outputs == outputs[2].outputs


def test_text_and_embeddings_share_the_engine(llm):
    alone = llm.generate("the quick brown fox", GREEDY)[0].outputs[0].text
    vector = llm.embed("one two three")[0].outputs.embedding
    stream = llm.stream("the quick brown fox", GREEDY)
    text = next(stream).outputs[0].text
    assert np.allclose(llm.embed("one two three")[0].outputs.embedding, vector, atol=1e-5)
    assert text + "".join(o.outputs[0].text for o in stream) == alone
