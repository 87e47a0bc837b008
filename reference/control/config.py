"""The numbers the scheduler works with. ``EngineConfig.scheduler`` makes one from what the user set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quire.reference.control.errors import ConfigError
from quire.reference.control.speculation import DraftPolicy


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Sizes and policies of the control plane; see ``EngineConfig`` for what each one means to a user.

    ``num_blocks`` counts the null block 0, which is never handed out. ``num_host_blocks`` is the swap space.
    ``speculation`` says how many drafts to ask for; None: there is no proposer.
    """

    num_blocks: int
    max_model_len: int
    block_size: int = 16
    num_host_blocks: int = 0
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    policy: Literal["fcfs", "priority"] = "fcfs"
    preemption_mode: Literal["recompute", "swap"] = "recompute"
    speculation: DraftPolicy | None = None

    def __post_init__(self) -> None:
        if self.num_blocks < 2:
            raise ConfigError(
                "num_blocks", self.num_blocks, "block 0 is the null block, so none is left", "Give at least 2"
            )
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ConfigError(
                "max_num_batched_tokens",
                self.max_num_batched_tokens,
                f"smaller than max_model_len={self.max_model_len}, and without chunked prefill a prompt is one step",
                "Raise it, lower max_model_len or set enable_chunked_prefill=True",
            )
