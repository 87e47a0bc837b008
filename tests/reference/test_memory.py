"""The memory ledger: what is counted, what is refused, and that every remedy in a refusal works."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.reference.config import GIB, EngineConfig
from quire.reference.control.errors import ConfigError
from quire.reference.memory import CPU_KV_BYTES, DeviceMemory, activation_bytes, measure, plan_memory, size, size_kv
from quire.reference.models.config import parse_config

LLAMA_8B = parse_config({
    "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "rope_theta": 500000.0, "tie_word_embeddings": False,
})  # fmt: skip
TINY = replace(
    LLAMA_8B, hidden_size=64, embed_size=64, intermediate_size=96, num_layers=2, windows=(None, None), num_heads=4,
    num_kv_heads=2, head_dim=16, vocab_size=384, max_position=256,
)  # fmt: skip
BF16 = torch.bfloat16


def plan(total, free=None, device="cuda:0", model=LLAMA_8B, **settings_):
    memory = DeviceMemory(device, int(total * GIB), int((total if free is None else free) * GIB))
    return plan_memory(EngineConfig(**settings_), model, dtype=BF16, memory=memory)


def test_a_token_of_llama_8b_takes_128_kib():
    ledger = plan(80)
    assert ledger.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2 == 128 * 1024
    assert ledger.block_bytes == 16 * ledger.kv_bytes_per_token


def test_a_draft_model_has_its_place():
    memory = DeviceMemory("cuda:0", 80 * GIB, 80 * GIB)
    both = plan_memory(EngineConfig(), LLAMA_8B, dtype=BF16, memory=memory, draft=TINY)
    alone = plan(80)
    assert both.weights - alone.weights == 2 * TINY.num_parameters
    assert both.kv_bytes_per_token - alone.kv_bytes_per_token == TINY.kv_bytes_per_token(BF16) > 0


def test_the_parts_add_up_to_the_device():
    ledger = plan(80, free=78, gpu_memory_utilization=0.75)
    assert ledger.others == 2 * GIB and ledger.reserved == 20 * GIB
    assert ledger.weights == LLAMA_8B.num_parameters * 2
    parts = ledger.others + ledger.reserved + ledger.weights + ledger.activations + ledger.kv_possible
    assert parts == ledger.total == 80 * GIB
    assert 0 <= ledger.kv_possible - ledger.kv_bytes < ledger.block_bytes


def test_the_cache_is_never_larger_than_the_sequences_can_fill():
    ledger = plan(80, max_num_seqs=3, max_model_len=1000)
    assert ledger.num_blocks == 3 * 63 + 1
    assert ledger.num_tokens == 3 * 63 * 16


def test_on_a_cpu_the_cache_keeps_to_its_default_or_one_sequence():
    assert plan(64, device="cpu", max_model_len=4096).kv_bytes == CPU_KV_BYTES
    assert plan(80, device="cpu").num_blocks == 131072 // 16 + 1
    assert plan(64, device="cpu", max_model_len=4096, num_blocks=4000).num_blocks == 4000


def test_explicit_sizes():
    assert plan(80, max_model_len=4096, num_blocks=300).num_blocks == 300
    assert plan(80, max_model_len=4096, kv_cache_memory_bytes=GIB).num_blocks == 512
    # They may use what gpu_memory_utilization leaves free otherwise.
    assert plan(24, max_model_len=4096, gpu_memory_utilization=0.1, num_blocks=300).num_blocks == 300


def test_swap_space_is_there_only_if_preemption_swaps():
    assert plan(80, swap_space=2.0).num_host_blocks == 0
    assert plan(80, swap_space=2.0, preemption_mode="swap").num_host_blocks == 1024
    assert plan(80, swap_space=2.0, preemption_mode="swap", max_num_seqs=2, max_model_len=64).num_host_blocks == 9


@pytest.mark.parametrize(
    ("total", "device", "settings_", "field", "offered"),
    [
        (40, "cuda:0", {}, "gpu_memory_utilization", {"gpu_memory_utilization", "max_model_len"}),
        (24, "cuda:0", {}, "gpu_memory_utilization", {"max_model_len"}),
        (80, "cuda:0", {"num_blocks": 100}, "num_blocks", {"num_blocks", "max_model_len"}),
        (40, "cuda:0", {"num_blocks": 100_000}, "num_blocks", {"num_blocks"}),
        (40, "cuda:0", {"kv_cache_memory_bytes": 1000}, "kv_cache_memory_bytes", {"kv_cache_memory_bytes"}),
        (
            18,
            "cuda:0",
            {"max_model_len": 4096, "max_num_batched_tokens": 65536},
            "gpu_memory_utilization",
            {"max_num_batched_tokens"},
        ),
        (24, "cpu", {}, "gpu_memory_utilization", {"max_model_len"}),
        (8, "cuda:0", {}, "gpu_memory_utilization", set()),
    ],
)
def test_every_remedy_of_a_refusal_works(total, device, settings_, field, offered):
    with pytest.raises(ConfigError) as refused:
        plan(total, device=device, **settings_)
    text = str(refused.value)
    assert refused.value.field == field and "weights" in text and "KV per token" in text, "the ledger is in the text"
    remedies = dict(re.findall(r"(\w+)=([\d.]+)(?:,|\n)", refused.value.remedy.partition("memory of")[0]))
    assert remedies.keys() == offered
    for name, value in remedies.items():
        plan(total, device=device, **{**settings_, name: float(value) if "." in value else int(value)})


def test_remedies_are_the_smallest_changes():
    with pytest.raises(ConfigError) as refused:
        plan(40)
    longest = int(re.search(r"max_model_len=(\d+)\n", refused.value.remedy)[1])
    with pytest.raises(ConfigError):
        plan(40, max_model_len=longest + 16)
    share = float(re.search(r"gpu_memory_utilization=([\d.]+)", refused.value.remedy)[1])
    with pytest.raises(ConfigError):
        plan(40, gpu_memory_utilization=round(share - 0.01, 2))


@given(
    total=st.floats(0.01, 4),
    used=st.floats(0, 1),
    size=st.one_of(
        st.just({}),
        st.fixed_dictionaries({"num_blocks": st.integers(2, 10_000_000)}),
        st.fixed_dictionaries({"kv_cache_memory_bytes": st.integers(1, 2**36)}),
    ),
    settings_=st.fixed_dictionaries(
        {},
        optional={
            "gpu_memory_utilization": st.floats(0.01, 1),
            "max_model_len": st.integers(1, 256),
            "block_size": st.sampled_from([1, 16, 48]),
            "max_num_seqs": st.integers(1, 4096),
            "max_num_batched_tokens": st.integers(1, 10**6),
            "preemption_mode": st.just("swap"),
        },
    ),
    device=st.sampled_from(["cpu", "cuda:0"]),
)
@settings(max_examples=200, deadline=None)
def test_a_plan_either_holds_a_whole_sequence_or_is_refused(total, used, size, settings_, device):
    try:
        ledger = plan(total, total * (1 - used), device, TINY, **size, **settings_)
    except ConfigError as refused:
        assert str(refused).count("\n") >= 9
        return
    assert ledger.num_tokens >= ledger.max_model_len
    assert ledger.kv_bytes <= ledger.kv_available
    assert ledger.num_host_blocks >= 0
    str(ledger)


def test_activations_grow_with_every_setting_they_depend_on():
    def bytes_of(**settings_):
        length = settings_.pop("length", 1024)
        return activation_bytes(EngineConfig(**{"max_num_seqs": 8, **settings_}), LLAMA_8B, BF16, length)

    assert bytes_of(max_num_batched_tokens=8192) > bytes_of(max_num_batched_tokens=4096)
    assert bytes_of(max_num_seqs=2048) > bytes_of()
    assert bytes_of(length=131072) > bytes_of()


def test_this_machine():
    memory = measure("cpu")
    assert 0 < memory.free <= memory.total
    ledger = size_kv(EngineConfig(max_num_seqs=4), TINY, dtype=torch.float32, device="cpu")
    assert ledger.num_blocks == 4 * 16 + 1 and ledger.device == "cpu"


def test_the_table():
    text = str(plan(80, max_model_len=4096))
    assert "weights                   15.0 GiB" in text
    assert re.search(r"KV cache +[\d.]+ GiB   [\d,]+ blocks of 16 tokens", text)
    assert re.search(r"[\d,]+ tokens fit: [\d.,]+ sequences of max_model_len=4096", text)


def test_sizes_for_people():
    shown = {0: "0 B", 1023: "1,023 B", 1536: "1.5 KiB", GIB: "1.0 GiB", -3 * 2**20: "-3.0 MiB", 2**52: "4,096.0 TiB"}
    assert {n: size(n) for n in shown} == shown
