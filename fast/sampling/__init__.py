"""From logits to tokens on the GPU: what ``quire.reference.sampling`` defines, without a sort.

In this order:

- masks, penalties (penalties.py) and temperature;
- min_p, top-k and top-p (truncation.py);
- argmax(logits / T + Gumbel noise) (sampler.py, philox.py).
"""

from quire.fast.sampling.sampler import sample
from quire.fast.sampling.state import DeviceSamplerState

__all__ = ["DeviceSamplerState", "sample"]
