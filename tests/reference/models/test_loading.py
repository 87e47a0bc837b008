"""Checkpoints on disk: layouts and spellings that load, and damage that is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from quire.reference.checkpoint import generation_defaults, resolve
from quire.reference.control.errors import CheckpointError, ConfigError, QuireError
from quire.reference.models import REGISTRY, choose_dtype, load_config
from quire.reference.models.config import FAMILIES, parse_config
from tests.reference.models.driver import CONFIGS, LLAMA3, Paged, hf_model, load, save

PROMPT = [5, 17, 80, 31, 9]


def logits(folder: Path, **kwargs: Any) -> torch.Tensor:
    return Paged(load(folder, **kwargs)).step([(0, PROMPT)])[0]


def edit_config(folder: Path, **changes: Any) -> None:
    """Change fields of config.json; a field set to ... is removed."""
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(hf_model("llama3"), tmp_path_factory.mktemp("llama3"))


@pytest.fixture
def folder(llama3: Path, tmp_path: Path) -> Path:
    """A copy of a sound checkpoint (tied embeddings, llama3 rope), to be damaged."""
    return Path(shutil.copytree(llama3, tmp_path / "model"))


# --- what loads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama3", "gpt2", "opt"])
def test_sharded(name: str, tmp_path: Path) -> None:
    hf = hf_model(name)
    save(hf, tmp_path / "one")
    save(hf, tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert torch.equal(logits(tmp_path / "one"), logits(tmp_path / "many"))


def test_old_spellings(folder: Path) -> None:
    expected = logits(folder)
    scaling = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    edit_config(folder, rope_parameters=..., dtype=..., torch_dtype="float32", rope_theta=10000.0, rope_scaling=scaling)
    assert torch.equal(logits(folder), expected)
    scaling["type"] = scaling.pop("rope_type")
    edit_config(folder, rope_scaling=scaling, head_dim=..., attention_bias=...)
    assert torch.equal(logits(folder), expected)
    edit_config(folder, rope_scaling=None)
    assert not torch.equal(logits(folder), expected)


def test_names_without_prefix_and_known_buffers(folder: Path, tmp_path: Path) -> None:
    """The first GPT-2 checkpoints lack "transformer." and carry their causal masks; old Llamas carry inv_freq."""
    gpt2 = save(hf_model("gpt2"), tmp_path / "gpt2")
    expected = logits(gpt2)

    def age(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for i in range(3):
            tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 8, 8)
            tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)

    edit_weights(gpt2, age)
    assert torch.equal(logits(gpt2), expected)
    expected = logits(folder)
    edit_weights(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}))
    edit_weights(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert torch.equal(logits(folder), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.2), (torch.float16, 0.03)])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "opt"])
def test_sixteen_bit_checkpoints(name: str, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    hf = hf_model(name, dtype)
    save(hf, tmp_path)
    assert load_config(tmp_path).dtype == dtype
    with torch.inference_mode():
        expected = hf(torch.tensor([PROMPT])).logits[0].float()
        hf = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
        exact = hf(torch.tensor([PROMPT])).logits[0]
    same = logits(tmp_path, dtype=str(dtype).removeprefix("torch."))
    assert same.dtype == dtype
    torch.testing.assert_close(same.float(), expected, atol=tolerance * exact.std().item(), rtol=0.0)
    torch.testing.assert_close(logits(tmp_path), exact, atol=1e-4, rtol=1e-4)  # "auto" on a CPU: float32


def test_choice_of_dtype() -> None:
    config = parse_config(CONFIGS["llama3"].to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"})
    assert choose_dtype("auto", config, "cpu") == torch.float32
    assert choose_dtype("auto", config, "cuda:1") == torch.bfloat16
    assert choose_dtype("half", config, "cpu") == torch.float16
    assert choose_dtype("float", config, "cuda") == torch.float32
    with pytest.raises(ConfigError, match=r"dtype='int8'.*bfloat16"):
        choose_dtype("int8", config, "cpu")


def test_sizes(folder: Path) -> None:
    config = load_config(folder)
    assert config.kv_bytes_per_token(torch.bfloat16) == 2 * 3 * 2 * 12 * 2
    assert load(folder, max_model_len=50).max_model_len == 50
    assert load(folder).max_model_len == 160
    with pytest.raises(ConfigError, match=r"max_model_len=161.*160"):
        load(folder, max_model_len=161)


def test_loading_needs_no_second_copy(tmp_path: Path) -> None:
    """The weights are the only large tensors alive after loading, and each part of a packed matrix is a view of it."""
    model: Any = load(save(hf_model("qwen2"), tmp_path))
    for name, place in model.places().items():
        if ".self_attn." in name and name.endswith("_proj.weight") and "o_proj" not in name:
            assert any(place.untyped_storage().data_ptr() == la.qkv.untyped_storage().data_ptr() for la in model.layers)


def test_generation_defaults(folder: Path) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    edit_config(folder, eos_token_id=7)
    assert generation_defaults(folder) == {"eos_token_ids": [7]}
    content = {"temperature": 0.6, "top_p": 0.9, "top_k": None, "max_new_tokens": 99, "eos_token_id": [3, 4], "x": 1}
    (folder / "generation_config.json").write_text(json.dumps(content))
    assert generation_defaults(folder) == {
        "temperature": 0.6,
        "top_p": 0.9,
        "max_tokens": 99,
        "eos_token_ids": [3, 4],
    }


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(action: Callable[[], Any], field: str, *words: str) -> None:
    """The error names the field and the words, and tells what to do."""
    with pytest.raises(CheckpointError) as caught:
        action()
    assert isinstance(caught.value, QuireError) and caught.value.field == field, caught.value
    assert caught.value.remedy
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in {caught.value}"


CONFIG_FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "architecture": ({"architectures": ["MambaForCausalLM"]}, "architectures", "Qwen3ForCausalLM"),
    "no architecture": ({"architectures": ...}, "architectures", "LlamaForCausalLM"),
    "rope": ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_parameters", "llama3"),
    "rope without factor": ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor", "linear"),
    "partial rope": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "part of each head"),
    "missing": ({"hidden_size": ...}, "hidden_size", "positive integer"),
    "nonsense": ({"num_hidden_layers": "three"}, "num_hidden_layers", "three"),
    "kv heads": ({"num_key_value_heads": 3}, "num_key_value_heads", "does not divide"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act", "silu"),
    "quantized": ({"quantization_config": {"quant_method": "awq"}}, "quantization_config", "awq"),
    "dtype": ({"dtype": "float8_e4m3fn"}, "dtype", "bfloat16"),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_config_faults(fault: str, folder: Path) -> None:
    changes, field, word = CONFIG_FAULTS[fault]
    edit_config(folder, **changes)
    refused(lambda: load(folder), field, word)


def test_config_faults_of_other_families() -> None:
    def parse(name: str, **changes: Any) -> Any:
        return parse_config({**CONFIGS[name].to_dict(), "architectures": [ARCHITECTURES[name]], **changes})

    refused(lambda: parse("gpt2", activation_function="gelu"), "activation_function", "gelu_new")
    refused(lambda: parse("gpt2", scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx")
    refused(lambda: parse("opt", layer_norm_elementwise_affine=False), "layer_norm_elementwise_affine")
    refused(lambda: parse("qwen3", use_sliding_window=True, sliding_window=4, layer_types=["chunked_attention"] * 3),
            "layer_types", "sliding_attention")  # fmt: skip
    assert parse("qwen2", use_sliding_window=False, sliding_window=4).windows == (None,) * 3
    old = {"use_sliding_window": True, "sliding_window": 4, "layer_types": None, "max_window_layers": 2}
    assert parse("qwen2", **old).windows == (None, None, 4)


ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM", "qwen2": "Qwen2ForCausalLM",
                 "qwen3": "Qwen3ForCausalLM"}  # fmt: skip


def test_folder_faults(folder: Path, tmp_path: Path) -> None:
    refused(lambda: resolve(tmp_path / "nowhere"), "model", "nowhere", "no such folder", "pocket")
    refused(lambda: resolve(folder / "config.json"), "model", "this is a file")
    refused(lambda: load_config(tmp_path / "nowhere"), "model", "no such folder")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(lambda: load(folder), "model", "pytorch_model.bin", "safe_serialization")
    (folder / "pytorch_model.bin").unlink()
    refused(lambda: load(folder), "model", "no model.safetensors")
    (folder / "config.json").write_text("{")
    refused(lambda: load(folder), "config.json", "JSON")
    (folder / "config.json").unlink()
    refused(lambda: load(folder), "model", "no config.json")


def test_shard_faults(tmp_path: Path) -> None:
    folder = save(hf_model("llama3"), tmp_path, max_shard_size="40KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    refused(lambda: load(folder), "file", shard.name, "Download it again")
    shard.write_bytes(b"\x00" * 4)
    refused(lambda: load(folder), "file", shard.name)
    shard.unlink()
    refused(lambda: load(folder), "shard", shard.name, "missing")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(lambda: load(folder), "weight_map", "index")


def test_tensor_faults(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    sound = load_file(folder / "model.safetensors")

    def with_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[], Any]:
        save_file(sound, folder / "model.safetensors")
        edit_weights(folder, change)
        return lambda: load(folder)

    refused(with_tensors(lambda t: t.pop(name)), "tensor", "layers.1.mlp.up_proj.weight", "missing")
    refused(with_tensors(lambda t: t.update({name: torch.ones(80, 47)})), "tensor", name, "(80, 47)", "(80, 48)")
    refused(with_tensors(lambda t: t.update({name: torch.ones(80, 48, dtype=torch.int8)})), "tensor", name, "int8")
    refused(with_tensors(lambda t: t.update(extra=torch.ones(3))), "tensor", "extra", "no place")
    with_tensors(lambda t: None)
    edit_config(folder, tie_word_embeddings=False)
    refused(lambda: load(folder), "tensor", "lm_head.weight", "tie_word_embeddings")


def test_zoo_names() -> None:
    assert (resolve("pocket") / "config.json").is_file()


def test_random_weights_need_no_file_and_are_always_the_same(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    first, second = (load(tmp_path, load_format="dummy").places() for _ in range(2))
    assert first.keys() == load(folder).places().keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) and tensor.isfinite().all()


def test_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def offline(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    refused(lambda: resolve("org/some-model", "v2"), "model", "org/some-model", "v2", "Name or service", "offline",
            "pocket")  # fmt: skip
    asked: dict[str, Any] = {}

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("org/some-model", "v2") == folder and asked == {"name": "org/some-model", "revision": "v2"}


def test_every_architecture_that_is_understood_can_be_built() -> None:
    assert set(FAMILIES) == set(REGISTRY)
