"""Everything a user can get wrong: the error names field, value and remedy, and requests in flight finish unharmed."""

from __future__ import annotations

import json
import shutil

import pytest

from quire import (
    LLM,
    CheckpointError,
    ConfigError,
    EngineConfig,
    PoolingParams,
    QuireError,
    RequestError,
    SamplingParams,
    StructuredOutputsParams,
    backend,
)
from quire import BeamSearchParams as Beams
from tests.toys import tiny_checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
TALK = [{"role": "user", "content": "hello"}]


def structured(**form) -> SamplingParams:
    return SamplingParams(structured_outputs=StructuredOutputsParams(**form))


# name: (what the user does, the field that is named, a part of the message)
REQUESTS = {
    "empty prompt": (lambda m: m.generate(""), "prompt", "the prompt is empty"),
    "empty token ids": (lambda m: m.generate({"prompt_token_ids": []}), "prompt_token_ids", "the prompt is empty"),
    "empty prompt among good ones": (lambda m: m.generate(["a", "", "b"], GREEDY), "prompt", "prompt 1 of 3"),
    "prompt too long": (lambda m: m.generate([1] * 512, GREEDY), "prompt_token_ids", "to 511 tokens"),
    "max_tokens 0": (lambda m: SamplingParams(max_tokens=0), "max_tokens", "at least 1"),
    "max_tokens negative": (lambda m: SamplingParams(max_tokens=-3), "max_tokens", "=-3"),
    "top_p 0": (lambda m: SamplingParams(top_p=0), "top_p", "(0, 1]"),
    "top_p 1.1": (lambda m: SamplingParams(top_p=1.1), "top_p", "(0, 1]"),
    "temperature negative": (lambda m: SamplingParams(temperature=-1), "temperature", "=-1"),
    "unknown parameter": (lambda m: SamplingParams(**{"temprature": 1}), "temprature", "temperature"),
    "unknown engine argument": (lambda m: LLM("pocket", max_seqs=3), "max_seqs", "max_num_seqs"),
    "token id out of range": (lambda m: m.generate([1, 384], GREEDY), "prompt_token_ids", "0 to 383"),
    "negative token id": (lambda m: m.generate([1, -1], GREEDY), "prompt_token_ids", "=-1"),
    "float token id": (lambda m: m.generate({"prompt_token_ids": [1.5]}, GREEDY), "prompt_token_ids", "not an integer"),
    "n too large": (lambda m: m.generate("a", SamplingParams(n=17)), "n", "max_num_seqs=16"),
    "beam_width too large": (lambda m: m.beam_search("a", Beams(beam_width=17, max_tokens=2)), "beam_width", "Lower"),
    "stop token beyond": (lambda m: m.generate("a", SamplingParams(stop_token_ids=[999])), "stop_token_ids", "383"),
    "logit_bias beyond": (lambda m: m.generate("a", SamplingParams(logit_bias={999: 1})), "logit_bias", "999"),
    "allowed beyond": (lambda m: m.generate("a", SamplingParams(allowed_token_ids=[999])), "allowed_token_ids", ""),
    "beams too large for it": (
        lambda m: m.beam_search("a", Beams(beam_width=8, max_tokens=400)), "max_tokens", "8 beams",
    ),
    "too few parameters": (lambda m: m.generate(["a", "b"], [GREEDY]), "sampling_params", "2 prompts"),
    "parameters of another kind": (lambda m: m.generate("a", {"n": 1}), "sampling_params", "SamplingParams"),
    "text from pooling parameters": (
        lambda m: m.generate("a", PoolingParams()), "sampling_params", "Give a SamplingParams",
    ),
    "an embedding from sampling parameters": (lambda m: m.embed("a", GREEDY), "pooling_params", "Give a PoolingParams"),
    "too many dimensions": (lambda m: m.embed("a", PoolingParams(dimensions=65)), "dimensions", "at most 64"),
    "too long to embed": (lambda m: m.embed([1] * 513), "prompt_token_ids", "to 512 tokens"),
    "nothing to embed": (lambda m: m.embed(""), "prompt", "the prompt is empty"),
    "prompt of another kind": (lambda m: m.generate(7), "prompts", "not a prompt"),
    "prompt in a list of another kind": (lambda m: m.generate([None]), "prompt", "Give a string"),
    "unknown prompt key": (lambda m: m.generate({"text": "a"}), "prompt", "prompt_token_ids"),
    "priority of another kind": (lambda m: m.generate("a", GREEDY, priority="high"), "priority", "integer"),
    "priority where it has no effect": (lambda m: m.generate("a", GREEDY, priority=1), "priority", "fcfs"),
    "min_tokens beyond the context": (
        lambda m: m.generate([1] * 500, SamplingParams(min_tokens=20, max_tokens=30)), "min_tokens", "room for 12",
    ),
    "logit_bias of another kind": (lambda m: SamplingParams(logit_bias=[1]), "logit_bias", "dict"),
    "stop of another kind": (lambda m: SamplingParams(stop=5), "stop", "non-empty strings"),
    "bad_words of another kind": (lambda m: SamplingParams(bad_words=5), "bad_words", "non-empty strings"),
    "bad words as one list": (lambda m: SamplingParams(bad_words_token_ids=[5]), "bad_words_token_ids", "lists"),
    "a flag in words": (lambda m: SamplingParams(detokenize="no"), "detokenize", "True or False"),
    "no conversation": (lambda m: m.chat([]), "messages", "Give a list"),
    "no role": (lambda m: m.chat([{"content": "a"}]), "messages", "role"),
    "a message the template refuses": (
        lambda m: m.chat([{"role": "nobody", "content": "a"}]), "messages", "nobody may not speak",
    ),
    "no regex": (lambda m: m.generate("a", structured(regex="(")), "structured_outputs.regex", "unclosed group"),
    "no schema": (
        lambda m: m.generate(["a", "b"], [GREEDY, structured(json={"$ref": "#/x"})]), "structured_outputs.json",
        "prompt 1 of 2",
    ),
    "no grammar": (lambda m: m.generate("a", structured(grammar="start: x")), "structured_outputs.grammar", "unknown"),
    "two forms": (lambda m: structured(regex="a", json_object=True), "structured_outputs", "exactly one"),
    "a form as a dict": (lambda m: SamplingParams(structured_outputs={}), "structured_outputs", "Params"),
    "beams in a form": (
        lambda m: Beams(beam_width=2, max_tokens=2, structured_outputs=None), "structured_outputs", "unknown beam",
    ),
    "a broken template": (lambda m: m.chat(TALK, chat_template="{% if %}"), "chat_template", "no Jinja template"),
    "a conversation in one message": (lambda m: m.chat(TALK[0]), "messages", "Give a list"),
    "a conversation in one text": (lambda m: m.chat("hello"), "messages", "Give a list"),
    "a picture": (
        lambda m: m.chat([*TALK, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]),
        "messages.1.content.0", "not a part of text",
    ),
    "content of another kind": (lambda m: m.chat([{"role": "user", "content": 5}]), "messages.0.content", "not a text"),
    "tools of another kind": (lambda m: m.chat(TALK, tools=["weather"]), "tools", "not a list of functions"),
    "a salt of another kind": (lambda m: m.generate({"prompt": "a", "cache_salt": 5}), "cache_salt", "not a text"),
    "an empty salt": (lambda m: m.generate({"prompt": "a", "cache_salt": ""}), "cache_salt", "not a text"),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUESTS)
def test_a_bad_request_is_refused_and_others_finish_unharmed(llm, case):
    act, field, part = REQUESTS[case]
    expected = llm.generate("the quick", GREEDY)[0].outputs[0]
    in_flight = llm.stream("the quick", GREEDY)
    text = next(in_flight).outputs[0].text
    with pytest.raises(QuireError) as caught:
        act(llm)
    error = caught.value
    assert error.field == field and part in str(error)
    assert error.remedy and error.remedy in str(error) and str(error).startswith(f"{field}=")
    assert text + "".join(output.outputs[0].text for output in in_flight) == expected.text


def test_good_prompts_beside_a_bad_one_leave_nothing_behind(llm):
    """Also when only the scheduler can see that a prompt is bad, after others were admitted."""
    with pytest.raises(RequestError, match=r"max_tokens=80.*prompt 1 of 2"):
        llm.beam_search(["a", [1] * 50], Beams(beam_width=8, max_tokens=80))
    assert not llm.engine.has_unfinished()


@pytest.mark.parametrize("setting", [{"num_blocks": 10}, {"kv_cache_memory_bytes": 100_000}])
def test_a_cache_too_small_for_a_single_request_is_refused_at_the_start(checkpoint, setting):
    error = fails_to_load(checkpoint, ConfigError, **setting)
    (field,) = setting
    assert error.field == field and "max_model_len=1024" in error.problem
    assert f"{field}=" in error.remedy and "possible KV cache" in error.remedy  # what would fit, and the ledger


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A copy of the checkpoint for a test to damage."""
    return shutil.copytree(checkpoint, tmp_path / "broken")


def fails_to_load(path, kind=CheckpointError, **engine_args) -> QuireError:
    with pytest.raises(kind) as caught:
        LLM(str(path), **engine_args)
    assert caught.value.remedy
    return caught.value


def test_model_path_that_does_not_exist():
    error = fails_to_load("/no/such/folder")
    assert error.field == "model" and "/no/such/folder" in str(error) and "pocket" in error.remedy


@pytest.mark.parametrize("model", [None, 5, ""])
def test_a_model_that_is_no_name(model):
    with pytest.raises(QuireError) as caught:
        LLM(model)
    assert caught.value.field == "model" and caught.value.value == model and caught.value.remedy


def test_each_of_several_checkpoints_is_called_by_the_argument_that_names_it(checkpoint):
    assert fails_to_load(checkpoint, tokenizer="/no/such").field == "tokenizer"
    drafting = {"speculative_config": {"model": "/no/such"}, "num_blocks": 65}
    assert fails_to_load(checkpoint, **drafting).field == "speculative_config.model"


@pytest.mark.parametrize(
    ("given", "field"), [({"temperature": "hot"}, "temperature"), ({"eos_token_id": "</s>"}, "eos_token_id")]
)
def test_damaged_generation_defaults_are_no_requests_fault(broken, given, field):
    (broken / "generation_config.json").write_text(json.dumps(given))
    error = fails_to_load(broken)
    assert error.field == field and "generation_config" in str(error)


def test_unsupported_architecture_lists_the_supported_ones(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))
    error = fails_to_load(broken)
    assert "MambaForCausalLM" in str(error) and "LlamaForCausalLM" in str(error) and "OPTForCausalLM" in str(error)


def test_truncated_weights(broken):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "model.safetensors" in str(fails_to_load(broken))


def test_missing_weights_and_missing_shard(broken):
    (broken / "model.safetensors").rename(broken / "model-00001-of-00002.safetensors")
    assert "no model.safetensors" in str(fails_to_load(broken))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    error = fails_to_load(broken)
    assert error.field == "shard" and "model-00002-of-00002.safetensors" in str(error)


def test_without_a_tokenizer_token_ids_still_work(tmp_path):
    path = tiny_checkpoint(tmp_path / "bare", tokenizer=False)
    llm = LLM(str(path), num_blocks=65)
    tokens = llm.generate([1, 2, 3], SamplingParams(max_tokens=3, detokenize=False, ignore_eos=True))[0].outputs[0]
    assert len(tokens.token_ids) == 3
    for ask in (lambda: llm.generate("text"), lambda: llm.generate([1, 2]), lambda: llm.chat(TALK), llm.get_tokenizer):
        with pytest.raises(CheckpointError, match="no tokenizer") as caught:
            ask()
        assert caught.value.field == "tokenizer" and "detokenize=False" in caught.value.remedy
    assert not llm.engine.has_unfinished()


def test_a_named_tokenizer_must_be_there(checkpoint, tmp_path):
    error = fails_to_load(checkpoint, tokenizer=str(tmp_path))
    assert error.field == "tokenizer" and str(tmp_path) in str(error)


def test_a_damaged_tokenizer_says_why(broken):
    (broken / "tokenizer.json").write_text('{"version": ')
    error = fails_to_load(broken)
    assert error.field == "tokenizer" and error.__cause__ is not None


def test_no_chat_template(checkpoint, tmp_path):
    bare = shutil.copytree(checkpoint, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    llm = LLM(str(bare), num_blocks=65)
    with pytest.raises(RequestError, match="no chat template") as caught:
        llm.chat(TALK)
    assert "chat_template=" in caught.value.remedy
    assert llm.chat(TALK, GREEDY, chat_template="{{ messages[0].content }}")[0].prompt == "hello"


def test_the_fast_data_plane_says_where_it_is_not_there(checkpoint):
    error = fails_to_load(checkpoint, ConfigError, backend="fast", device="meta")
    assert error.field == "backend" and "auto" in error.remedy


def test_a_gpu_without_triton_is_the_reference_planes(monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert backend.choose(EngineConfig(), "cuda:1") == "reference"
    with pytest.raises(ConfigError, match="triton") as caught:
        backend.choose(EngineConfig(backend="fast"), "cuda")
    assert "pip install" in caught.value.remedy


def test_a_device_that_is_not_there(checkpoint):
    error = fails_to_load(checkpoint, ConfigError, device="cuda:77")
    assert error.field == "device" and "cuda:77" in str(error)


def test_max_model_len_beyond_the_model(checkpoint):
    assert fails_to_load(checkpoint, ConfigError, max_model_len=4096).field == "max_model_len"


def test_a_trace_folder_that_cannot_be_written(checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        error = fails_to_load(checkpoint, ConfigError, trace=str(folder))
        assert error.field == "trace" and "cannot be written" in str(error)
