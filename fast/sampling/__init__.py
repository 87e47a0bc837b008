"""From logits to tokens on the GPU: what ``quire.reference.sampling`` defines, without a sort.

In this order:

- masks, penalties (penalties.py) and temperature;
- min_p, top-k and top-p (truncation.py);
- argmax(logits / T + Gumbel noise) (sampler.py, philox.py);
- of drafts, those that agree with what was chosen (verification.py), or those that rejection sampling accepts
  (rejection.py).
"""

from quire.fast.sampling.rejection import distribution, draw_from, reject
from quire.fast.sampling.sampler import sample
from quire.fast.sampling.state import DeviceSamplerState
from quire.fast.sampling.verification import settle

__all__ = ["DeviceSamplerState", "distribution", "draw_from", "reject", "sample", "settle"]
