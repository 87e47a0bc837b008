"""Engine arguments, with vLLM's names and meanings. No torch in here: the scheduler's half needs none.

``EngineConfig`` is what a user may set on ``LLM(...)`` or the command line; ``SchedulerConfig`` is the part of it that
the control plane reads once the model is known.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any, Literal, get_args

from quire.reference.control.checks import known_fields_only
from quire.reference.control.config import SchedulerConfig
from quire.reference.control.errors import ConfigError
from quire.reference.control.speculation import DraftPolicy
from quire.reference.speculation.config import SpeculativeConfig, speculative_config

Backend = Literal["auto", "reference", "fast"]
DType = Literal["auto", "half", "float16", "bfloat16", "float", "float32"]
Policy = Literal["fcfs", "priority"]
PreemptionMode = Literal["recompute", "swap"]
LoadFormat = Literal["auto", "dummy"]
GenerationConfig = Literal["auto", "none"]
GIB = 1 << 30


@known_fields_only(ConfigError, "engine argument")
@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything that can be set when an engine starts.

    model                   zoo name ("pocket"), local folder, or Hugging Face hub name
    tokenizer               folder or hub name of the tokenizer, if not the model's own
    backend                 which data plane: "reference", or "fast" on a GPU or CPU; "auto" takes the fastest there is
    device                  torch device, or "auto": cuda if there is one, else cpu
    load_format             "auto": the checkpoint's safetensors files; "dummy": random weights, to measure a shape
    dtype                   arithmetic; "auto" is the checkpoint's own, except 16-bit checkpoints on a CPU: float32
    seed                    of the engine; requests without a seed of their own derive theirs from it
    max_model_len           longest sequence (prompt + output) in tokens; None = what the model was made for
    block_size              token slots per KV block
    gpu_memory_utilization  share of the device's memory quire may fill (weights + activations + KV cache)
    kv_cache_memory_bytes   size of the KV cache, instead of deriving it from gpu_memory_utilization
    num_blocks              number of KV blocks, instead of either
    swap_space              GiB of host memory for swapped-out KV blocks
    max_num_seqs            sequences in one step at most
    max_num_batched_tokens  tokens computed in one step at most
    enable_chunked_prefill  long prompts may be computed over several steps
    enable_prefix_caching   keep full blocks of finished requests for later ones with the same beginning
    scheduling_policy       "fcfs", or "priority" (lower value first, then arrival)
    preemption_mode         when blocks run out: "recompute" the victim later, or "swap" its blocks to the host
    batch_invariant         reductions do not depend on the batch: bitwise equal outputs, at some cost
    async_scheduling        plan and launch the next step before this one's tokens are on the host (run-ahead); None: on
                            a GPU
    enforce_eager           launch kernel by kernel instead of replaying CUDA graphs (GPU)
    trust_remote_code       let transformers run code that comes with a tokenizer
    revision                branch, tag or commit on the hub
    generation_config       "auto": default sampling parameters from the checkpoint; "none": quire's own
    trace                   folder to record every step to (JSONL and Chrome trace); None = no recording
    trace_redact            leave token ids out of the trace
    verify                  share of the steps, 0 to 1, that the reference computes once more and compares
    verify_dir              folder for steps that it found to differ: files to replay, which hold tokens of requests
    speculative_config      speculative decoding: {"method": "ngram" | "suffix" | "draft_model", "model", …}, see
                            ``SpeculativeConfig``; None = none
    speculative_model       older spelling of its "model"
    num_speculative_tokens  older spelling of the same name in it
    """

    model: str = "pocket"
    tokenizer: str | None = None
    backend: Backend = "auto"
    device: str = "auto"
    load_format: LoadFormat = "auto"
    dtype: DType = "auto"
    seed: int = 0
    max_model_len: int | None = None
    block_size: int = 16
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int | None = None
    num_blocks: int | None = None
    swap_space: float = 1.0
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    scheduling_policy: Policy = "fcfs"
    preemption_mode: PreemptionMode = "recompute"
    batch_invariant: bool = False
    async_scheduling: bool | None = None
    enforce_eager: bool = False
    trust_remote_code: bool = False
    revision: str | None = None
    generation_config: GenerationConfig = "auto"
    trace: str | None = None
    trace_redact: bool = False
    verify: float = 0.0
    verify_dir: str = "quire-verify"
    speculative_config: dict[str, Any] | SpeculativeConfig | None = None
    speculative_model: str | None = None
    num_speculative_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("backend", Backend),
            ("load_format", LoadFormat),
            ("dtype", DType),
            ("scheduling_policy", Policy),
            ("preemption_mode", PreemptionMode),
            ("generation_config", GenerationConfig),
        ):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise ConfigError(name, value, "unknown choice", f"Choose one of {', '.join(get_args(choices))}")
        for name in (
            "block_size",
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_model_len",
            "num_blocks",
            "kv_cache_memory_bytes",
        ):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(name, value, "not a positive integer", "Give an integer of at least 1")
        for name in ("model", "tokenizer", "device", "revision", "trace", "verify_dir"):
            value = getattr(self, name)
            if isinstance(value, PathLike):
                object.__setattr__(self, name, fspath(value))
            elif not isinstance(value, str) and not (value is None and name in ("tokenizer", "revision", "trace")):
                raise ConfigError(name, value, "not a text", "Give a string")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool) and not isinstance(value, bool):
                raise ConfigError(field.name, value, "neither True nor False", "Give one of the two")
            number = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
            if isinstance(field.default, float) and not number:
                raise ConfigError(field.name, value, "not a finite number", f"Give one such as {field.default}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral) or not -(2**63) <= self.seed < 2**64:
            raise ConfigError("seed", self.seed, "not a 64-bit integer", "Give an integer such as 0")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                "gpu_memory_utilization",
                self.gpu_memory_utilization,
                "outside (0, 1]",
                "Give the share of the device's memory to use, such as 0.9",
            )
        if self.swap_space < 0:
            raise ConfigError("swap_space", self.swap_space, "negative", "Give GiB of host memory, or 0 for none")
        if self.preemption_mode == "swap" and self.swap_space == 0:
            raise ConfigError(
                "swap_space", 0, 'with preemption_mode="swap" blocks have nowhere to go', "Give GiB of host memory"
            )
        if self.trace_redact and self.trace is None:
            raise ConfigError("trace_redact", True, "trace is None, so nothing is recorded", "Name a folder with trace")
        if not 0 <= self.verify <= 1:
            raise ConfigError(
                "verify", self.verify, "outside [0, 1]", "Give the share of the steps to verify, such as 0.01, or 0"
            )
        speculation = speculative_config(self.speculative_config, self.speculative_model, self.num_speculative_tokens)
        if speculation is not None and speculation.verification == "rejection" and self.verify:
            raise ConfigError(
                "verify", self.verify, "what rejection sampling accepts depends on what was drafted",
                'Leave it out, or speculative_config\'s verification="rejection"',
            )  # fmt: skip
        if self.num_blocks is not None and self.kv_cache_memory_bytes is not None:
            raise ConfigError(
                "num_blocks", self.num_blocks, f"kv_cache_memory_bytes={self.kv_cache_memory_bytes} is given too",
                "Give one of the two: each sets the size of the KV cache",
            )  # fmt: skip
        if self.num_blocks == 1:
            raise ConfigError("num_blocks", 1, "block 0 is the null block, so none is left", "Give at least 2")

    @property
    def speculation(self) -> SpeculativeConfig | None:
        """What the three arguments about speculative decoding come to."""
        return speculative_config(self.speculative_config, self.speculative_model, self.num_speculative_tokens)

    def scheduler(
        self,
        *,
        max_model_len: int,
        num_blocks: int,
        num_host_blocks: int,
        speculation: DraftPolicy | None = None,
    ) -> SchedulerConfig:
        """The control plane's view, once the model's length and the sizes of the block pools are known."""
        return SchedulerConfig(
            max_model_len=max_model_len,
            num_blocks=num_blocks,
            num_host_blocks=num_host_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            enable_chunked_prefill=self.enable_chunked_prefill,
            enable_prefix_caching=self.enable_prefix_caching,
            policy=self.scheduling_policy,
            preemption_mode=self.preemption_mode,
            speculation=speculation,
        )
