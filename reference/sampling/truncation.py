"""min_p, top-k and top-p as one number per row: the score that a token must reach to be kept.

Each of the three keeps the likeliest tokens, so each is a threshold, and together they are the highest of the three.
**Ties are kept**: a token whose score equals the threshold is in, however many there are. So the kept set depends on
the scores alone and not on how somebody sorted them, and a kernel that finds the threshold by bisection meets the same
definition.

    min_p   score ≥ best + log(min_p), i.e. at least min_p times as likely as the likeliest
    top-k   score ≥ the k-th largest score (repeated values count as often as they occur)
    top-p   the probability of all strictly likelier tokens is below top_p; probabilities are those among the tokens
            that min_p and top-k left. With ties set aside: the smallest set whose probability reaches top_p.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def thresholds(
    scores: Tensor, top_k: npt.NDArray[np.int64], top_p: npt.NDArray[np.float64], log_min_p: npt.NDArray[np.float32]
) -> Tensor:
    """scores float32 [R, V] (logits / temperature; -inf = masked); parameters [R] -> lowest kept score, float32 [R].

    Off: top_k = V, top_p = 1, log_min_p = -inf; the threshold is then -inf.
    """
    vocab, device = scores.shape[1], scores.device
    best = scores.amax(-1)
    lowest = best + torch.from_numpy(log_min_p).to(device)
    limited = top_k < vocab
    if limited.any():
        largest = _largest(scores, int(top_k[limited].max()))
        kth = largest.gather(1, torch.from_numpy(np.minimum(top_k, largest.shape[1]) - 1)[:, None].to(device))[:, 0]
        lowest = torch.where(torch.from_numpy(limited).to(device), torch.maximum(lowest, kth), lowest)
    nucleus = np.flatnonzero(top_p < 1)
    if len(nucleus):
        at = torch.from_numpy(nucleus).to(device)
        left = scores[at]
        if limited.any() or np.isfinite(log_min_p).any():
            left = left.masked_fill(left < lowest[at, None], -torch.inf)
        lowest[at] = torch.maximum(lowest[at], _top_p(left, best[at], torch.from_numpy(top_p[nucleus]).to(device)))
    return lowest


def _top_p(scores: Tensor, best: Tensor, p: Tensor) -> Tensor:
    """The top-p threshold of each row [R]. best [R] is the row's maximum, p float64 [R] below 1."""
    # Weights are exp(score - best). Their total comes out of softmax because that adds up every row for itself, in an
    # order that does not depend on the number of rows; torch.sum would share a single row among threads.
    total = 1 / scores.softmax(-1).amax(-1).double()
    # Tokens lighter than (1 - p) * total / V weigh less than (1 - p) * total all together: the threshold lies above
    # them, so they need no sorting. (Half of that, for rounding; and p so close to 1 sorts everything.)
    cut = best.double() + torch.log(0.5 * (1 - p) * total / scores.shape[1])
    cut = torch.where(p < 1 - 1e-4, cut, -torch.inf).float()
    largest = _largest(scores, max(1, int((scores >= cut[:, None]).sum(-1).max())))
    mass = torch.exp(largest - best[:, None]).double().cumsum(-1)
    last = (mass < (p * total)[:, None]).sum(-1, keepdim=True).clamp(max=largest.shape[1] - 1)
    return largest.gather(1, last)[:, 0]


def _largest(scores: Tensor, k: int) -> Tensor:
    """The k largest scores of each row in falling order, [R, k]."""
    if scores.device.type != "cpu":
        return scores.topk(k).values
    # NumPy's vectorised partition and sort of values alone are several times faster than torch's, which sort the places
    # too. They sort upwards, hence the two signs.
    falling = -scores.numpy()
    if k < scores.shape[1] // 2 and scores.shape[1] > 10_000:
        falling = np.partition(falling, k - 1, axis=-1)[:, :k]
    falling.sort(axis=-1)
    return torch.from_numpy(-falling[:, :k])
