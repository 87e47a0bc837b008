"""Shadow verification: a healthy plane verifies every step and notices nothing; a planted bug is found and named.

The plane under test is the batch-invariant one: its ops module can be broken without touching the reference's. Every
bug is found by an engine at work, and once more from the file that was written, by a runner that knows nothing else.
"""

from __future__ import annotations

import json
import logging
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import quire.reference.runner as runner_module
from quire import LLM, BeamSearchParams, ConfigError, EngineConfig, SamplingParams, StructuredOutputsParams
from quire.cli import serve
from quire.reference import inputs as inputs_module
from quire.reference import ops as reference_ops
from quire.reference.control import kv_manager
from quire.reference.control.plan import SeqPlan, StepPlan, StepResult
from quire.reference.ops import AttnMeta, invariant
from quire.reference.sampling import sample
from quire.reference.speculation.ngram import NGram
from quire.reference.speculation.proposer import Draft, View
from quire.verify import report
from quire.verify import runner as verify_runner
from quire.verify.__main__ import main
from quire.verify.replay import read, replay
from quire.verify.runner import VerifiedRunner, chosen
from tests.reference.models.driver import hf_model, save
from tests.toys import tiny_checkpoint

ENGINE = {"block_size": 4, "num_blocks": 120, "max_model_len": 128, "max_num_batched_tokens": 40, "max_num_seqs": 12}
TIGHT = {"num_blocks": 34, "max_num_batched_tokens": 24}
BEGINNING = list(range(20, 45))  # of several prompts
CHOICE = StructuredOutputsParams(choice=["one two", "three"])
REQUESTS: list[tuple[list[int], SamplingParams]] = [
    ([*BEGINNING, 7], SamplingParams(temperature=0, max_tokens=12, logprobs=2, prompt_logprobs=1)),
    ([*BEGINNING, 8], SamplingParams(temperature=0.9, top_p=0.9, top_k=40, max_tokens=12, seed=7, n=3)),
    ([9, 10, 11], SamplingParams(temperature=1.2, min_p=0.02, max_tokens=30, ignore_eos=True, logprobs=0)),
    ([*BEGINNING, 5], SamplingParams(max_tokens=20, presence_penalty=0.7, frequency_penalty=0.4, seed=2**64 - 1)),
    ([12] * 9, SamplingParams(max_tokens=20, repetition_penalty=1.3, min_tokens=6, logit_bias={17: 3.0, 40: -9.0})),
    ([13, 14], SamplingParams(max_tokens=9, bad_words_token_ids=[[15], [16, 17]], allowed_token_ids=range(10, 60))),
    ([15, 16], SamplingParams(max_tokens=9, structured_outputs=CHOICE, n=2, seed=1)),
]


def engine(checkpoint: Path, folder: Path, **settings: Any) -> LLM:
    return LLM(
        str(checkpoint),
        **{"batch_invariant": True, "backend": "reference", "verify_dir": str(folder)} | ENGINE | settings,
    )


def work(llm: LLM) -> Any:
    """Everything that can be in a step: chunks, shared beginnings, forks, beams, embeddings, penalties, grammars."""
    prompts = [{"prompt_token_ids": ids} for ids, _ in REQUESTS]
    texts = llm.generate(prompts, [params for _, params in REQUESTS], use_tqdm=False)
    again = llm.generate(prompts[:4], [params for _, params in REQUESTS[:4]], use_tqdm=False)
    beams = llm.beam_search(prompts[:2], BeamSearchParams(beam_width=3, max_tokens=5))
    embeddings = llm.embed(prompts[:3], use_tqdm=False)
    completions = [(c.token_ids, c.logprobs, c.finish_reason) for o in texts + again for c in o.outputs]
    found = [(s.tokens, s.cum_logprob) for o in beams for s in o.sequences]
    return completions, found, [o.outputs.embedding for o in embeddings]


# ------------------------------------------------------------------------------------------- a plane without a fault


LOOKUP = {"method": "ngram", "prompt_lookup_min": 1, "num_speculative_tokens": 4, "adaptive": False}
SETTINGS = {
    "": {},
    "tight": TIGHT,
    "run-ahead": TIGHT | {"async_scheduling": True},
    "drafts": TIGHT | {"speculative_config": LOOKUP},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_healthy_engine_verifies_each_step_and_answers_the_same_bit_by_bit(checkpoint, tmp_path, settings) -> None:
    expected = work(engine(checkpoint, tmp_path, **settings))
    llm = engine(checkpoint, tmp_path, verify=1, **settings)
    assert work(llm) == expected
    stats = llm.stats()
    assert stats.steps_verified == sum(stats.steps_by_tokens) and stats.steps_diverged == 0
    assert stats.prefix_hits and stats.num_copies and (stats.num_preemptions or not settings)
    assert list(tmp_path.iterdir()) == []


def test_a_share_of_the_steps_costs_only_these(checkpoint, tmp_path) -> None:
    llm = engine(checkpoint, tmp_path, verify=0.3)
    work(llm)
    stats = llm.stats()
    assert stats.steps_verified == sum(chosen(step, 0.3) for step in range(sum(stats.steps_by_tokens)))


def test_results_come_in_the_order_of_their_steps(monkeypatch) -> None:
    """A step that is verified is waited for at once; whoever drafts with what arrives has had the one before."""
    waited = []

    class Launched:
        def __init__(self, step: int) -> None:
            self.step = step

        def wait(self) -> StepResult:
            waited.append(self.step)
            return StepResult(self.step, [])

    launched = iter(map(Launched, range(3)))
    plane = SimpleNamespace(
        model=SimpleNamespace(), block_size=4, caches=[(torch.zeros(1),) * 2], launched=SimpleNamespace(),
        forward=lambda plan: None, sample=lambda masks: next(launched),
    )  # fmt: skip
    monkeypatch.setattr(verify_runner, "chosen", lambda step, share: step == 2)
    monkeypatch.setattr(VerifiedRunner, "_verify", lambda *_: None)
    runner = VerifiedRunner(plane, share=0.5, on_divergence=lambda found: None)  # type: ignore[arg-type]
    for step in range(3):
        runner.forward(StepPlan(step, seqs=[SeqPlan(0, 0, 0, 0, 1, 0, [], True)]))
        runner.sample()
    assert waited == [1, 2]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_the_share_is_kept_and_the_steps_are_always_the_same(share) -> None:
    steps = [step for step in range(20_000) if chosen(step, share)]
    assert len(steps) == pytest.approx(20_000 * share, rel=0.25)
    assert steps == [step for step in range(20_000) if chosen(step, share)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_to_16_bits_is_no_difference(checkpoint, tmp_path, dtype) -> None:
    llm = engine(checkpoint, tmp_path, verify=1, dtype=dtype)
    work(llm)
    assert llm.stats().steps_verified > 20 and llm.stats().steps_diverged == 0


@pytest.mark.parametrize("name", ["gpt2", "opt-norm-after-narrow", "mistral-window", "qwen3-layer-types"])
def test_it_knows_nothing_of_the_architecture(tmp_path, name) -> None:
    save(hf_model(name), tmp_path / "model")
    llm = engine(tmp_path / "model", tmp_path / "found", verify=1)
    params = SamplingParams(max_tokens=12, ignore_eos=True, detokenize=False)
    llm.generate([{"prompt_token_ids": ids} for ids in ([3] * 30, [4, 5])], params, use_tqdm=False)
    assert llm.stats().steps_verified == 12 and llm.stats().steps_diverged == 0


@pytest.mark.parametrize("flags", [["--verify", "0.25", "--verify-dir", "x"], []])
def test_the_server_takes_the_same_settings(flags) -> None:
    parser = ArgumentParser()
    serve.configure(parser)
    config, _ = serve.settings(parser.parse_args(flags))
    assert (config.verify, config.verify_dir) == ((0.25, "x") if flags else (0.0, "quire-verify"))


# ------------------------------------------------------------------------------------------------------ planted bugs


class OffInTheLastLayer:
    """Of the four of a forward pass the third is off by a percent."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x, residual, weight, eps):
        self.calls += 1
        normed, residual = intact.add_rms_norm(x, residual, weight, eps)
        return normed * (1.01 if self.calls % 4 == 3 else 1.0), residual


def without_the_last_block(q, k, v, k_cache, v_cache, meta, **kwargs):
    """Correct for sequences of one block, else the keys of the last one are left out (all but the query's own)."""
    longest = (meta.seq_len - 1) // 4 * 4
    out = intact.attention(q, k, v, k_cache, v_cache, meta, **kwargs)
    decodes = (meta.cu_q.diff() == 1) & (longest > 0)
    if not decodes.any():
        return out
    short = AttnMeta(meta.cu_q, torch.where(decodes, longest, meta.seq_len), meta.block_table, meta.slot * 0 - 1)
    return intact.attention(q, k, v, k_cache, v_cache, short, **kwargs)


def into_the_next_slot(q, k, v, k_cache, v_cache, meta, **kwargs):
    last = k_cache.shape[0] * k_cache.shape[1] - 1
    moved = torch.where(meta.slot >= 0, (meta.slot + 1).clamp(max=last), meta.slot)
    return intact.attention(
        q, k, v, k_cache, v_cache, AttnMeta(meta.cu_q, meta.seq_len, meta.block_table, moved), **kwargs
    )


def one_number_wrong(x, weight, bias=None):
    out = intact.linear(x, weight, bias)
    if len(weight) == 384:  # logits
        out[0, 383] += 1
    return out


def leaves_out_a_number(x):
    out = intact.silu_and_mul(x)
    return torch.where(torch.arange(out.shape[1]) == out.shape[1] - 1, torch.nan, out)


intact = SimpleNamespace(**vars(invariant))  # as they are, whatever a test does to the module

BUGS: dict[str, tuple[str, Any, str]] = {  # an op, what takes its place, and where it is to be found
    "norm": ("add_rms_norm", OffInTheLastLayer(), "call 16 (layers.1.mlp_norm), result 1 of 2"),
    "context": ("attention", without_the_last_block, "call 5 (after layers.0.qkv)"),
    "slots": ("attention", into_the_next_slot, "call 5 (after layers.0.qkv), K in its slots"),
    "logits": ("linear", one_number_wrong, "call 1 (lm_head)"),
    "nan": ("silu_and_mul", leaves_out_a_number, "call 9 (after layers.0.gate_up)"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_an_op_is_found_named_and_replayed(checkpoint, tmp_path, monkeypatch, caplog, bug) -> None:
    op, broken, where = BUGS[bug]
    monkeypatch.setattr(invariant, op, broken)
    llm = engine(checkpoint, tmp_path, verify=1)
    llm.generate([{"prompt_token_ids": ids} for ids, _ in REQUESTS[:3]], REQUESTS[2][1], use_tqdm=False)
    assert llm.stats().steps_diverged > 0
    files = sorted(tmp_path.iterdir())
    first = read(files[0])
    name = f"{'logits: ' * (bug == 'logits')}{op}, {where}"
    assert first.about["differences"][0]["what"] == name
    assert name in caplog.messages[0] and str(files[0]) in caplog.messages[0]
    del llm
    (run,) = replay(first)
    assert [d.what for d in run.differences] == [d["what"] for d in first.about["differences"]]
    assert run.off == 0 or bug == "nan"


def test_a_bug_is_gone_from_the_replay_when_it_is_mended(checkpoint, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(invariant, "add_rms_norm", OffInTheLastLayer())
    work(engine(checkpoint, tmp_path, verify=1))
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    assert main([files[0]]) == 1
    assert "run 1 of 1: 1 differences; the hidden states are those recorded" in capsys.readouterr().out
    monkeypatch.setattr(invariant, "add_rms_norm", intact.add_rms_norm)
    assert main([files[0]]) == 0
    assert "not reproduced" in capsys.readouterr().out
    monkeypatch.delattr(reference_ops, "embed")  # nor can anything be said then
    assert main([files[0]]) == 2
    assert "cannot be verified here" in capsys.readouterr().err


def second_best(logits, state, rows, lengths, tokens, masks=None):
    best = sample(logits, state, rows, lengths, tokens, masks)
    return sample(logits.scatter(1, best[:, None], -torch.inf), state, rows, lengths, tokens, masks)


def test_a_sampler_that_takes_the_second_best_is_found(checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runner_module, "sample", second_best)
    llm = engine(checkpoint, tmp_path, verify=1)
    work(llm)
    assert llm.stats().steps_diverged > 0
    for file in sorted(tmp_path.iterdir()):
        recording = read(file)
        assert {d["what"] for d in recording.about["differences"]} == {"sample"}
        (run,) = replay(recording)
        assert [d.problem for d in run.differences] == [d["problem"] for d in recording.about["differences"]]


def test_a_runner_that_mixes_up_its_slots_is_found(checkpoint, tmp_path, monkeypatch) -> None:
    """Both planes would write there, so no comparison of ops can tell."""
    monkeypatch.setattr(inputs_module, "AttnMeta", lambda **f: AttnMeta(**f | {"slot": f["slot"].roll(1)}))
    llm = engine(checkpoint, tmp_path, verify=1)
    llm.generate([{"prompt_token_ids": BEGINNING}], SamplingParams(max_tokens=3), use_tqdm=False)
    recording = read(min(tmp_path.iterdir()))
    assert recording.about["differences"][0]["what"] == "inputs, slot"
    assert replay(recording)[0].differences[0].what == "inputs, slot"


def test_a_draft_that_is_accepted_wrongly_is_found(checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("quire.reference.sampling.verification.agreement", lambda own, drafts: len(drafts))
    llm = engine(checkpoint, tmp_path, verify=1, speculative_config=LOOKUP)
    monkeypatch.setattr(llm.engine.runner.runner, "proposer", Guesses())
    llm.generate([{"prompt_token_ids": BEGINNING}], SamplingParams(max_tokens=9), use_tqdm=False)
    recording = read(min(tmp_path.iterdir()))
    assert recording.about["differences"][0]["what"] == "inputs, ids", "what was computed is not what was kept"
    (run,) = replay(recording)
    assert run.differences == [], "the drafts are tokens like others when the step is run again, and it is right"


class Guesses(NGram):
    """Drafts that nothing speaks for."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def propose(self, view: View) -> list[Draft]:
        return [Draft([1, 2, 3][: int(want)]) for want in view.want]


def test_a_copy_that_is_lost_is_found_in_the_past(checkpoint, tmp_path, monkeypatch) -> None:
    """Both planes read what is in the block, so this too is for no comparison of ops."""
    monkeypatch.setattr(runner_module, "copy_blocks", lambda caches, src, dst: None)
    assert_the_past_is_wrong(checkpoint, tmp_path, REQUESTS[:2])


def test_a_prefix_cache_that_mixes_up_prompts_is_found_in_the_past(checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(kv_manager, "block_hash", lambda parent, tokens: parent + b"!")
    assert_the_past_is_wrong(
        checkpoint, tmp_path, [([i] * 10, SamplingParams(max_tokens=4, temperature=0)) for i in range(5, 9)]
    )


def assert_the_past_is_wrong(checkpoint: Path, folder: Path, requests: Any) -> None:
    llm = engine(checkpoint, folder, verify=1, max_num_seqs=3)
    llm.generate([{"prompt_token_ids": ids} for ids, _ in requests], [p for _, p in requests], use_tqdm=False)
    assert 0 < llm.stats().steps_diverged < llm.stats().steps_verified
    for file in folder.iterdir():
        recording = read(file)
        found = [d["what"] for d in recording.about["differences"]]
        assert found[0] == "K of the past, layer 0" and {what[1:-1] for what in found} == {" of the past, layer "}
        assert set(found) <= {d.what for d in replay(recording)[0].differences}


class OnlyTheFirstTime:
    """An op that is wrong in the pass that was launched and right when it is repeated, as a graph may be."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, ids, weight):
        self.calls += 1
        return intact.embed(ids, weight) + self.calls % 2


def test_a_pass_that_its_own_ops_do_not_repeat_is_found_and_left_as_it_was(checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(invariant, "embed", OnlyTheFirstTime())
    llm = engine(checkpoint, tmp_path, verify=1)
    verified = llm.engine.runner
    caches, seen = [c for pair in verified.runner.caches for c in pair], []
    for cache in caches:
        cache.zero_()
    inner = verified.runner.sample

    def note_caches(masks=None):
        seen.append([cache.clone() for cache in caches])
        return inner(masks)

    monkeypatch.setattr(verified.runner, "sample", note_caches)
    llm.generate([{"prompt_token_ids": BEGINNING}], SamplingParams(max_tokens=1), use_tqdm=False)
    assert all(torch.equal(cache, before) for cache, before in zip(caches, seen[-1]))
    recording = read(min(tmp_path.iterdir()))
    found = [d["what"] for d in recording.about["differences"]]
    assert found[0] == "attention, call 5 (after layers.0.qkv), K of the first pass"
    assert found[-1] == "hidden states"
    monkeypatch.setattr(invariant, "embed", OnlyTheFirstTime())
    assert [d.what for d in replay(recording)[0].differences] == found


# ----------------------------------------------------------------------------------------------- reports and replays


def test_there_are_only_so_many_files_and_each_divergence_is_logged(checkpoint, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(report, "FILES", 2)
    monkeypatch.setattr(invariant, "add_rms_norm", OffInTheLastLayer())
    llm = engine(checkpoint, tmp_path, verify=1)
    work(llm)
    lines = [record for record in caplog.records if record.name == "quire.verify"]
    assert len(lines) == llm.stats().steps_diverged == llm.stats().steps_verified > 10
    assert all(line.levelno == logging.ERROR for line in lines)
    assert len(list(tmp_path.iterdir())) == 2 and "has 2 files of this engine" in lines[2].getMessage()


def test_of_a_large_step_the_sequence_at_fault_is_kept(checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(report, "KV_BYTES", 1)
    monkeypatch.setattr(invariant, "attention", without_the_last_block)
    prompts = [{"prompt_token_ids": [3]}, {"prompt_token_ids": BEGINNING}]
    engine(checkpoint, tmp_path, verify=1).generate(prompts, SamplingParams(max_tokens=2), use_tqdm=False)
    recording = read(min(tmp_path.iterdir()))
    (new,) = recording.plan.starts
    assert recording.about["sequences"] == 2 and new.token_ids[:-1] == BEGINNING
    assert replay(recording)[0].differences[0].what == recording.about["differences"][0]["what"]


@pytest.mark.parametrize("content", ["", "{}", "x" * 100])
def test_a_file_that_is_none_of_ours_is_refused(tmp_path, capsys, content) -> None:
    path = tmp_path / "step.safetensors"
    assert main([str(path)]) == 2 and "FILE=" in capsys.readouterr().err
    path.write_text(content)
    assert main([str(path)]) == 2 and "Give a file of verify_dir" in capsys.readouterr().err


def test_a_model_that_has_moved_is_found_where_it_is_said_to_be(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(invariant, "add_rms_norm", OffInTheLastLayer())
    old = tiny_checkpoint(tmp_path / "old")
    engine(old, tmp_path / "found", verify=1).generate("one", SamplingParams(max_tokens=1), use_tqdm=False)
    new, file = old.rename(tmp_path / "new"), str(min((tmp_path / "found").iterdir()))
    assert main([file]) == 2 and str(old) in capsys.readouterr().err
    assert main([file, "--model", str(new)]) == 1


def test_where_the_folder_is_gone_the_log_says_so(checkpoint, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(invariant, "add_rms_norm", OffInTheLastLayer())
    llm = engine(checkpoint, tmp_path / "found", verify=1)
    (tmp_path / "found").rmdir()
    llm.generate("one", SamplingParams(max_tokens=1), use_tqdm=False)
    assert "add_rms_norm" in caplog.messages[0] and "not written (" in caplog.messages[0]


def test_a_step_that_cannot_be_verified_goes_on(checkpoint, tmp_path, monkeypatch, caplog) -> None:
    expected = work(engine(checkpoint, tmp_path))
    llm = engine(checkpoint, tmp_path, verify=1)

    def no_room(got, expected):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr("quire.verify.lockstep.row_errors", no_room)
    assert work(llm) == expected
    assert llm.stats().steps_verified == 0
    assert caplog.messages[0] == "step 0 could not be verified" and "2 GiB" in caplog.text


@pytest.mark.parametrize("value", [-0.01, 1.01, 2, "0.1", None, True, float("nan")])
def test_a_share_that_is_none_is_refused(value) -> None:
    with pytest.raises(ConfigError, match="verify=") as caught:
        EngineConfig(verify=value)
    assert caught.value.field == "verify" and caught.value.remedy.startswith("Give ")


def test_a_folder_that_cannot_be_made_is_refused_at_the_start(checkpoint, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="verify_dir="):
        engine(checkpoint, tmp_path / "file" / "folder", verify=0.5)
    with pytest.raises(ConfigError, match="verify_dir=None"):
        EngineConfig(verify_dir=None)


def test_the_header_of_a_file_can_be_read_by_anybody(checkpoint, tmp_path, monkeypatch) -> None:
    """Eight bytes of length, then JSON: no quire is needed to look at it."""
    monkeypatch.setattr(invariant, "add_rms_norm", OffInTheLastLayer())
    work(engine(checkpoint, tmp_path, verify=1))
    data = min(tmp_path.iterdir()).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = json.loads(header["__metadata__"]["quire"])
    assert about["plane"] == "reference" and about["config"]["batch_invariant"] and about["versions"]["torch"]
