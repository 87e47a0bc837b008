"""How much memory there is, what it is for, and how many KV blocks that makes.

Everything is arithmetic over the model's shape, the settings and two numbers from the device, so it is known before
anything large is allocated, and a failure can say which setting to change to what::

    left to others      (1 - gpu_memory_utilization) of the device's memory, plus what others use already
    weights             parameters * bytes each
    activations         the widest moment of a step of max_num_batched_tokens tokens, see ``activation_bytes``
    KV cache            the rest, or what ``kv_cache_memory_bytes`` or ``num_blocks`` say

The rest is an upper bound: the cache never becomes larger than ``max_num_seqs`` sequences of ``max_model_len`` tokens
can fill. On a CPU it is also kept to 4 GiB (or one sequence of ``max_model_len``, if that is more), because the memory
of somebody's laptop is not ours to fill; ``kv_cache_memory_bytes`` or ``num_blocks`` lift that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from quire.reference.config import GIB, EngineConfig
from quire.reference.control.errors import ConfigError
from quire.reference.models import ModelConfig
from quire.reference.ops.attention import QUERY_CHUNK
from quire.reference.runner import PROMPT_LOGITS

CPU_KV_BYTES = 4 * GIB  # vLLM's default on CPUs, too


@dataclass(frozen=True, kw_only=True)
class MemoryLedger:
    """Where the memory goes, in bytes unless said otherwise. ``str()`` is the table that ``quire info`` prints.

    total, others         the device's memory; what was in use before quire came
    reserved              left free because of gpu_memory_utilization
    weights, activations  of the model; of a step at its widest
    kv_possible           what is left for the KV cache; negative if not even the weights fit
    num_blocks            of the KV cache, the null block included
    num_host_blocks       swap space
    """

    device: str
    total: int
    others: int
    reserved: int
    weights: int
    activations: int
    block_size: int
    kv_bytes_per_token: int
    num_blocks: int
    num_host_blocks: int
    max_model_len: int

    @property
    def kv_possible(self) -> int:
        return self.total - self.others - self.reserved - self.weights - self.activations

    @property
    def kv_available(self) -> int:
        """What an explicit size may take: it may also use what is left free otherwise."""
        return self.kv_possible + self.reserved

    @property
    def blocks_for_longest(self) -> int:
        """Blocks that one sequence of max_model_len needs, the null block included."""
        return -(-self.max_model_len // self.block_size) + 1

    @property
    def block_bytes(self) -> int:
        return self.block_size * self.kv_bytes_per_token

    @property
    def kv_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def num_tokens(self) -> int:
        """Tokens whose K/V fits; the null block holds none."""
        return max(0, self.num_blocks - 1) * self.block_size

    def __str__(self) -> str:
        rows = [
            (f"memory of {self.device}", self.total, ""),
            ("in use by others", self.others, ""),
            ("left free", self.reserved, "1 - gpu_memory_utilization"),
            ("weights", self.weights, ""),
            ("activations at peak", self.activations, ""),
            ("possible KV cache", self.kv_possible, ""),
            ("KV cache", self.kv_bytes, f"{self.num_blocks:,} blocks of {self.block_size} tokens"),
            ("swap space", self.num_host_blocks * self.block_bytes, f"{self.num_host_blocks:,} blocks on the host"),
            ("KV per token", self.kv_bytes_per_token, ""),
        ]
        lines = [f"{name:<22} {size(value):>11}   {note}".rstrip() for name, value, note in rows]
        full = self.num_tokens / self.max_model_len
        lines.append(f"{self.num_tokens:,} tokens fit: {full:,.1f} sequences of max_model_len={self.max_model_len}")
        return "\n".join(lines)


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device's memory, and how many of them were free before the model's weights were loaded."""

    device: str
    total: int
    free: int


def size_kv(
    config: EngineConfig,
    model: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    weights_loaded: bool = True,
    activations: int | None = None,
    draft: ModelConfig | None = None,
) -> MemoryLedger:
    """Measure ``device`` and plan its memory. Raises ConfigError (with the ledger in its text) if it cannot work.

    ``weights_loaded``: the model is on the device already, so its weights are no longer part of the free memory.
    ``activations``: what the steps of these settings take, if somebody has measured it. ``draft``: a draft model, whose
    K/V and weights come on top.
    """
    memory = measure(device)
    if weights_loaded:
        weights = _weights(model, draft, dtype)
        memory = replace(memory, free=min(memory.total, memory.free + weights))
    return plan_memory(config, model, dtype=dtype, memory=memory, activations=activations, draft=draft)


def measure(device: torch.device | str) -> DeviceMemory:
    """What ``device`` has, and what of it is free now."""
    device = torch.device(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(str(device), total, free)
    total, free = _host_memory()
    return DeviceMemory(str(device), total, free)


def _host_memory() -> tuple[int, int]:
    """Total and available memory of this machine, or of the container (cgroup v2) that it is for us."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        info = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        total, free = info["MemTotal"], info["MemAvailable"]
    except (OSError, KeyError, ValueError):
        try:  # macOS does not say what is available; half is a cautious guess
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            total = 8 * GIB  # Windows has neither; num_blocks and kv_cache_memory_bytes override
        return total, total // 2
    try:
        limit, used = (int(Path("/sys/fs/cgroup", f"memory.{name}").read_text()) for name in ("max", "current"))
        return min(total, limit), min(free, max(0, limit - used))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return total, free


def plan_memory(
    config: EngineConfig,
    model: ModelConfig,
    *,
    dtype: torch.dtype,
    memory: DeviceMemory,
    activations: int | None = None,
    draft: ModelConfig | None = None,
) -> MemoryLedger:
    """The ledger for these settings on a device with this memory: arithmetic, corrected by ``activations`` if measured.

    Raises ConfigError if not even one sequence of max_model_len fits or if more was asked for than there is. Every
    remedy in its text has been tried by the same arithmetic.
    """
    weights = _weights(model, draft, dtype)
    kv_bytes_per_token = sum(m.kv_bytes_per_token(dtype) for m in (model, draft) if m is not None)
    correction = 1.0  # remedies have other settings, which nobody has measured
    if activations is not None:
        correction = activations / activation_bytes(config, model, dtype, config.max_model_len or model.max_position)

    def attempt(settings: EngineConfig) -> tuple[MemoryLedger, str | None]:
        ledger = _ledger(settings, model, dtype, memory, weights, kv_bytes_per_token, correction)
        return ledger, _problem(settings, ledger)

    ledger, problem = attempt(config)
    if problem is None:
        return ledger
    remedies = _remedies(config, ledger, lambda settings: attempt(settings)[1] is None)
    remedy = f"Any one of these would fit: {', '.join(remedies)}" if remedies else "Use a smaller model or more memory"
    field = _explicit(config) or "gpu_memory_utilization"
    raise ConfigError(field, getattr(config, field), problem, f"{remedy}\n{ledger}")


def _explicit(config: EngineConfig) -> str | None:
    """The setting that gives the cache's size outright, if there is one."""
    return next((name for name in ("num_blocks", "kv_cache_memory_bytes") if getattr(config, name) is not None), None)


def _weights(model: ModelConfig, draft: ModelConfig | None, dtype: torch.dtype) -> int:
    return sum(m.num_parameters for m in (model, draft) if m is not None) * dtype.itemsize


def _ledger(
    config: EngineConfig,
    model: ModelConfig,
    dtype: torch.dtype,
    memory: DeviceMemory,
    weights: int,
    kv_bytes_per_token: int,
    correction: float,
) -> MemoryLedger:
    max_model_len = config.max_model_len or model.max_position
    block_bytes = config.block_size * kv_bytes_per_token
    ledger = MemoryLedger(
        device=memory.device,
        total=memory.total,
        others=memory.total - memory.free,
        reserved=round((1 - config.gpu_memory_utilization) * memory.total),
        weights=weights,
        activations=round(correction * activation_bytes(config, model, dtype, max_model_len)),
        block_size=config.block_size,
        kv_bytes_per_token=kv_bytes_per_token,
        num_blocks=0,
        num_host_blocks=0,
        max_model_len=max_model_len,
    )
    most = config.max_num_seqs * (ledger.blocks_for_longest - 1) + 1  # more could not be filled
    if config.num_blocks is not None:
        num_blocks = config.num_blocks
    elif config.kv_cache_memory_bytes is not None:
        num_blocks = config.kv_cache_memory_bytes // block_bytes
    else:
        num_blocks = min(max(0, ledger.kv_possible) // block_bytes, most)
        if memory.device.startswith("cpu"):
            num_blocks = min(num_blocks, max(CPU_KV_BYTES // block_bytes, ledger.blocks_for_longest))
    swap = int(config.swap_space * GIB) // block_bytes if config.preemption_mode == "swap" else 0
    return replace(ledger, num_blocks=num_blocks, num_host_blocks=min(swap, most))


def _problem(config: EngineConfig, ledger: MemoryLedger) -> str | None:
    """Why this plan cannot work, or None."""
    if _explicit(config) is None and ledger.kv_possible <= 0:
        return "weights and activations leave no room for a KV cache"
    if ledger.num_blocks < ledger.blocks_for_longest:
        return (
            f"one sequence of max_model_len={ledger.max_model_len} needs {ledger.blocks_for_longest:,} KV blocks "
            f"({size(ledger.blocks_for_longest * ledger.block_bytes)}), and there are {ledger.num_blocks:,}"
        )
    if _explicit(config) is not None and ledger.kv_bytes > ledger.kv_available:
        return f"that is {size(ledger.kv_bytes)} of KV cache, and {size(max(0, ledger.kv_available))} are free for it"
    return None


def _remedies(config: EngineConfig, ledger: MemoryLedger, fits: Callable[[EngineConfig], bool]) -> list[str]:
    """Changes of one setting each that make the plan fit, as ``name=value``."""
    remedies: list[str] = []

    def offer(name: str, values: list[Any]) -> None:
        """Offer the first of the values that fits."""
        for value in values:
            if fits(replace(config, **{name: value})):
                remedies.append(f"{name}={value}")
                return

    explicit = _explicit(config)
    if explicit is None:
        percent = round(100 * config.gpu_memory_utilization)
        offer("gpu_memory_utilization", [p / 100 for p in range(percent + 1, 101)])
    else:
        one = 1 if explicit == "num_blocks" else ledger.block_bytes
        counts = [ledger.blocks_for_longest, ledger.kv_available // ledger.block_bytes]  # at least, at most
        if ledger.num_blocks > counts[0]:  # too many, so offer as many as there can be
            counts.reverse()
        offer(explicit, [count * one for count in counts if count > 1])
    low, high = 0, ledger.max_model_len // config.block_size  # bisection: shorter sequences need less of everything
    while low < high:
        middle = (low + high + 1) // 2
        if fits(replace(config, max_model_len=middle * config.block_size)):
            low = middle
        else:
            high = middle - 1
    if low > 0:
        remedies.append(f"max_model_len={low * config.block_size}")
    offer("max_num_batched_tokens", [t for t in (4096, 2048, 1024, 512, 256) if t < config.max_num_batched_tokens])
    return remedies


def activation_bytes(config: EngineConfig, model: ModelConfig, dtype: torch.dtype, max_model_len: int) -> int:
    """Memory of a step's intermediate tensors at the widest moment, an estimate from above.

    T = max_num_batched_tokens tokens, of which R = min(T, max_num_seqs) are sampled; e bytes per number::

        layer      T * e * (3 hidden + max(4 (query + 2 kv heads) * head_dim, 4 intermediate))
        attention  max_model_len * (8 kv_heads * head_dim * e + 4 * 256 heads)      gathered K and V; a chunk's scores
        sampling   20 * V * R, or the same for the prompt positions whose log-probabilities are computed at once

    Layers and sampling do not overlap, so the larger one counts; attention adds to a layer.
    """
    tokens, e = config.max_num_batched_tokens, dtype.itemsize
    sampled = min(tokens, config.max_num_seqs)
    projections = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    layer = tokens * e * (3 * model.hidden_size + 4 * max(projections, model.intermediate_size))
    chunk = min(QUERY_CHUNK, tokens)
    attention = max_model_len * (8 * model.num_kv_heads * model.head_dim * e + 4 * chunk * model.num_heads)
    sampling = 20 * max(model.vocab_size * sampled, min(PROMPT_LOGITS, model.vocab_size * tokens))
    return max(layer + attention, sampling)


def size(num_bytes: int) -> str:
    """A number of bytes for people: 1536 -> "1.5 KiB"."""
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:,.0f} {units[0]}" if units[0] == "B" else f"{value:,.1f} {units[0]}"
