"""What is said of a step that diverges: a line in the log, and a file from which the step can be run again.

The file is one in safetensors' format, for tensors, with everything else as JSON in its header. It does not hold the
step as it was planned but one that comes to the same from nothing: every sequence starts with the tokens that are known
of it, and its block table names copies of the blocks that it had, with the K/V in them. So it is run like any step, by
a runner that has just been made.

A step of many long sequences has more K/V than anybody wants in a file. Then the sequence in which the difference is
greatest is kept, and of the others as many as there is room for.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from quire.reference.config import EngineConfig
from quire.reference.control.errors import ConfigError
from quire.reference.control.params import PoolingParams, SamplingParams
from quire.report import hardware, versions
from quire.verify.runner import Divergence

logger = logging.getLogger("quire.verify")

FORMAT = 1  # of the files
FILES = 10  # written by one engine at most: what is broken is mostly broken in the same way each time
KV_BYTES = 1 << 30  # in one file


class Reports:
    """Logs each divergence of an engine and writes the first ``FILES`` of them to ``config.verify_dir``.

    ``plane`` and ``device`` are what ``config.backend`` and ``config.device`` came to. Raises ConfigError if the folder
    cannot be made.
    """

    def __init__(self, config: EngineConfig, plane: str, device: str) -> None:
        self._folder, self._written = Path(config.verify_dir), 0
        self._about = {"config": asdict(config), "plane": plane, "device": device, "versions": versions()}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigError(
                "verify_dir", config.verify_dir, f"cannot be made ({reason})", "Name a folder you own"
            ) from None

    def __call__(self, divergence: Divergence) -> None:
        plan, first = divergence.plan, divergence.differences[0]
        seq = plan.seqs[divergence.sequence_of(first)]
        logger.error(
            "step %d differs from the reference: %s: %s; sequence %d, position %d; further differences: %d; %s",
            plan.step, first.what, first.problem, seq.seq_id, position_of(divergence, first.row),
            len(divergence.differences) - 1, self._write(divergence),
        )  # fmt: skip

    def _write(self, divergence: Divergence) -> str:
        """How the step can be run again, in words."""
        if self._written == FILES:
            return f"not written, {self._folder} has {FILES} files of this engine"
        now = datetime.now(timezone.utc)
        path = self._folder / f"{now:%Y%m%dT%H%M%SZ}-step{divergence.plan.step:06}.safetensors"
        about = self._about | {"created": now.isoformat(timespec="seconds"), "hardware": hardware()}
        try:
            write(path, divergence, about)
        except (OSError, SafetensorError) as error:
            return f"not written ({error})"
        self._written += 1
        return f"run it again: python -m quire.verify {path}"


def position_of(divergence: Divergence, row: int) -> int:
    """The position in its sequence of the step's token ``row``."""
    for seq in divergence.plan.seqs:
        if row < seq.n:
            return seq.start + row
        row -= seq.n
    raise IndexError(row)


def write(path: Path, divergence: Divergence, about: dict[str, Any]) -> None:
    """The step as a file; ``about`` goes into its header."""
    plan, runner = divergence.plan, divergence.runner
    kept = _kept(divergence)
    number = {block: i for i, block in enumerate(dict.fromkeys(b for i in kept for b in _blocks(divergence, i)), 1)}
    blocks = torch.tensor(list(number))
    tensors: dict[str, Tensor] = {}
    for layer, pair in enumerate(runner.caches):
        for letter, cache in zip("kv", pair):
            tensors[f"{letter}.{layer}"] = cache.index_select(0, blocks.to(cache.device)).cpu()
    ends = torch.tensor([0] + [s.n for s in plan.seqs]).cumsum(0).tolist()
    rows = np.concatenate([np.arange(ends[i], ends[i + 1]) for i in kept])
    among = np.isin(divergence.hidden_rows, rows)
    tensors["hidden"] = divergence.hidden[torch.from_numpy(among).to(divergence.hidden.device)].cpu()
    tensors["hidden_rows"] = torch.from_numpy(np.searchsorted(rows, divergence.hidden_rows[among]))
    starts, seqs = [], []
    for k, i in enumerate(kept):
        seq = plan.seqs[i]
        new = divergence.started[seq.row]
        known = max(seq.start + seq.n, new.prompt_len)
        token_ids = runner.tokens[seq.row, :known].tolist()
        token_ids[seq.start : seq.start + seq.n] = divergence.ids[ends[i] : ends[i + 1]].tolist()
        starts.append({**_as_json(new.params), **_without(asdict(new), "params"), "token_ids": token_ids})
        # Drafts become tokens like others: there is no proposer when the step is run again.
        alone = {"n_draft": 0, "propose": 0, "new_blocks": [number[b] for b in _blocks(divergence, i)]}
        seqs.append(asdict(seq) | alone)
        if i in divergence.masks:
            mask = torch.as_tensor(divergence.masks[i])
            if mask.ndim == 1 or len(mask) == seq.n_draft + 1:
                tensors[f"mask.{k}"] = (mask if mask.ndim == 1 else mask[-1]).cpu().contiguous()
    found = [{**asdict(d), "position": position_of(divergence, d.row)} for d in divergence.differences]
    header = about | {
        "format": FORMAT, "step": plan.step, "sequences": len(plan.seqs), "num_blocks": len(number) + 1,
        "starts": starts, "seqs": seqs, "differences": found,
    }  # fmt: skip
    save_file(tensors, path, metadata={"quire": json.dumps(header)})


def _kept(divergence: Divergence) -> list[int]:
    """The plan.seqs whose K/V there is room for, the one with the first difference among them."""
    worst = divergence.sequence_of(divergence.differences[0])
    k_cache = divergence.runner.caches[0][0]
    room = KV_BYTES // (2 * len(divergence.runner.caches) * k_cache[0].numel() * k_cache.element_size())
    kept, blocks = [worst], set(_blocks(divergence, worst))
    for i in range(len(divergence.plan.seqs)):
        own = blocks | set(_blocks(divergence, i))
        if i != worst and len(own) <= room:
            kept.append(i)
            blocks = own
    return sorted(kept)


def _blocks(divergence: Divergence, i: int) -> list[int]:
    """The blocks that plan.seqs[i] reads or writes, in the order of its table."""
    seq = divergence.plan.seqs[i]
    return divergence.tables[seq.row][: -(-(seq.start + seq.n) // divergence.runner.block_size)]


def _as_json(params: SamplingParams | PoolingParams) -> dict[str, Any]:
    # What a grammar allows is in the masks.
    return {"kind": type(params).__name__, "params": _without(asdict(params), "structured_outputs")}


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}
