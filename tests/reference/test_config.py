"""Engine arguments: values of the wrong kind are refused by name, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from quire import ConfigError, EngineConfig, RequestError
from quire.reference.checkpoint import resolve
from quire.reference.tokenizer import encode, load_tokenizer
from quire.zoo import model_path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "a"),
        ("seed", 2**64),
        ("swap_space", "4 GiB"),
        ("swap_space", float("nan")),
        ("gpu_memory_utilization", "0.9"),
        ("gpu_memory_utilization", True),
        ("enable_prefix_caching", "yes"),
        ("batch_invariant", None),
        ("trace", 3),
        ("device", 0),
        ("model", None),
        ("max_num_seqs", "3"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(name, value):
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**{name: value})
    assert caught.value.field == name and caught.value.remedy.startswith("Give ")


def test_the_size_of_the_kv_cache_is_set_once():
    with pytest.raises(ConfigError, match="kv_cache_memory_bytes=1048576 is given too"):
        EngineConfig(num_blocks=64, kv_cache_memory_bytes=1 << 20)


@pytest.mark.parametrize("given", [{"swap_space": 0, "preemption_mode": "swap"}, {"trace_redact": True}])
def test_what_would_have_no_effect_is_refused(given):
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**given)
    assert caught.value.field == next(iter(given)) and caught.value.remedy


def test_a_revision_of_something_local_is_refused():
    with pytest.raises(ConfigError, match="revision='main'"):
        resolve("pocket", "main")


def test_paths_may_be_paths():
    config = EngineConfig(model=Path("a") / "model", trace=Path("traces"))
    assert (config.model, config.trace) == (str(Path("a") / "model"), "traces")


def test_text_that_is_no_unicode_is_refused():
    tokenizer = load_tokenizer(model_path("pocket"))
    with pytest.raises(RequestError, match="surrogate pair at position 4"):
        encode(tokenizer, "half\ud800")
