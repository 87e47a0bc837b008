"""The fast data plane where there is no GPU: every op of ``quire.reference.ops``, same names, same arguments, for CPUs.

A model is handed this module and runs unchanged under the reference's runner; ``quire.fast.cpu.invariant`` has the same
names once more, with results that do not depend on the batch. Three ideas make it fast:

- attention reads keys and values where they are, through the block table, in a compiled loop (``attention``);
- what torch does in many small operators (norms, rotation, activations) is one compiled loop each;
- 16-bit weights are brought into the order of the processor's matrix units once, not at every product (``linear``).

The loops are Python, compiled by numba (``kernels``, ``attend``) and run on torch's own threads (``launch``). Tests
compare each op with the reference; ``python -m benchmarks.cpu`` compares the whole with transformers.
"""

from quire.fast.cpu.activation import gelu_new, relu, silu_and_mul
from quire.fast.cpu.attention import attention
from quire.fast.cpu.cache import copy_blocks
from quire.fast.cpu.linear import embed, linear
from quire.fast.cpu.norm import add_rms_norm, layer_norm, rms_norm
from quire.fast.cpu.rope import qk_norm_rope
from quire.fast.metadata import AttnMeta, attn_meta

__all__ = [
    "AttnMeta",
    "add_rms_norm",
    "attention",
    "attn_meta",
    "copy_blocks",
    "embed",
    "gelu_new",
    "layer_norm",
    "linear",
    "qk_norm_rope",
    "relu",
    "rms_norm",
    "silu_and_mul",
]
