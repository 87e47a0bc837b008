"""Every op of ``quire.reference.ops`` by the same name, with the same arguments, as Triton kernels for NVIDIA GPUs.

A model is handed this module instead of the reference's and runs unchanged. ``quire.fast.ops.invariant`` has the same
names once more, with results that do not depend on the batch. Each file opens with its idea, what bounds it (the
roofline: the time that moving its bytes, or its arithmetic, takes at the least) and the share of that bound which was
measured on one H200; ``python -m benchmarks.kernels`` measures it again. Tests compare each op with the reference,
compiled where there is a GPU, and through Triton's interpreter elsewhere.
"""

from quire.fast.ops.activation import gelu_new, relu, silu_and_mul
from quire.fast.ops.attention import attention
from quire.fast.ops.cache import AttnMeta, attn_meta, copy_blocks
from quire.fast.ops.linear import embed, linear
from quire.fast.ops.norm import add_rms_norm, layer_norm, rms_norm
from quire.fast.ops.rope import qk_norm_rope

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
