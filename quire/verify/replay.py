"""A file that ``report.py`` wrote becomes a step again, run by both planes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quire import backend
from quire.reference.config import EngineConfig
from quire.reference.control.errors import ConfigError
from quire.reference.control.params import PoolingParams, SamplingParams
from quire.reference.control.plan import NewSeq, SeqPlan, StepPlan
from quire.verify.compare import Difference, row_errors
from quire.verify.report import FORMAT
from quire.verify.runner import Divergence, VerifiedRunner

RUNS_ON_GPU = 3  # a decode step runs kernel by kernel, then is captured as a graph and replayed, then just replayed


@dataclass(frozen=True)
class Recording:
    """A step from a file.

    about     the header: config, plane, device, versions, and the differences that were found
    plan      the step, from rows that are empty and a cache of ``about["num_blocks"]`` blocks
    masks     of the sequences that have a grammar, by their place in the plan
    caches    K and V of each layer's blocks, from block 1 on
    hidden    the hidden states that the plane computed then, and which of the step's tokens they are of
    """

    about: dict[str, Any]
    plan: StepPlan
    masks: dict[int, Tensor]
    caches: list[tuple[Tensor, Tensor]]
    hidden: Tensor
    hidden_rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """A run of a recorded step: what differs now, and how far its hidden states are from those recorded."""

    differences: list[Difference]
    off: float


def read(path: str | Path) -> Recording:
    """Read a file. ConfigError if it is not one of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {})["quire"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        about = json.loads(header)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(
            "FILE", str(path), f"not a recorded step ({type(error).__name__}: {error})", "Give a file of verify_dir"
        ) from None
    if about["format"] != FORMAT:
        raise ConfigError(
            "FILE", str(path), f"written in format {about['format']}, this quire reads {FORMAT}",
            f"Use quire {about['versions']['quire']}",
        )  # fmt: skip
    starts = [_new_seq(**start) for start in about["starts"]]
    plan = StepPlan(about["step"], starts=starts, seqs=[SeqPlan(**seq) for seq in about["seqs"]])
    masks = {i: tensors[f"mask.{i}"] for i in range(len(plan.seqs)) if f"mask.{i}" in tensors}
    layers = sum(name.startswith("k.") for name in tensors)
    caches = [(tensors[f"k.{i}"], tensors[f"v.{i}"]) for i in range(layers)]
    return Recording(about, plan, masks, caches, tensors["hidden"], tensors["hidden_rows"].numpy())


def _new_seq(*, kind: str, params: dict[str, Any], stop_ids: list[int], **fields: Any) -> NewSeq:
    if kind == "PoolingParams":
        return NewSeq(params=PoolingParams(**params), stop_ids=tuple(stop_ids), **fields)
    if params["logit_bias"] is not None:  # JSON has texts for keys
        params = params | {"logit_bias": {int(token): bias for token, bias in params["logit_bias"].items()}}
    return NewSeq(params=SamplingParams(**params), stop_ids=tuple(stop_ids), **fields)


@torch.inference_mode()
def replay(recording: Recording, *, model: str | None = None) -> list[Run]:
    """Run the step on the plane that it was recorded on, under verification. ConfigError where that cannot be had.

    model   where the checkpoint is now, if it is not where it was
    """
    about = recording.about
    config = EngineConfig(**about["config"])
    alone: dict[str, Any] = {"speculative_config": None, "speculative_model": None, "num_speculative_tokens": None}
    config = replace(config, model=model or config.model, device=about["device"], **alone)
    device = backend.device(config)
    runner = backend.load_runner(config, backend.model_path(config), about["plane"], device)
    runner.allocate_kv(about["num_blocks"])
    diverged: list[Divergence] = []
    verified = VerifiedRunner(runner, share=1.0, on_divergence=diverged.append, pasts=len(recording.plan.seqs))
    plan = recording.plan
    runs: list[Run] = []
    for _ in range(RUNS_ON_GPU if runner.device.type == "cuda" else 1):
        for pair, recorded in zip(runner.caches, recording.caches):
            for cache, blocks in zip(pair, recorded):
                cache[1:] = blocks
        if runner.device.type == "cuda":
            torch.cuda.synchronize(runner.device)
        verified.forward(plan)
        hidden, rows = runner.launched.hidden, runner.launched.hidden_rows
        verified.sample(recording.masks).wait()
        if verified.steps == len(runs):
            raise ConfigError("FILE", about["step"], "this step cannot be verified here", "The error above says why")
        _, now, then = np.intersect1d(rows, recording.hidden_rows, return_indices=True)
        errors = row_errors(hidden.cpu()[torch.from_numpy(now)], recording.hidden[torch.from_numpy(then)])
        runs.append(Run(diverged.pop().differences if diverged else [], max(errors.tolist(), default=0.0)))
        plan = replace(plan, ends=[seq.row for seq in plan.seqs])
    return runs
