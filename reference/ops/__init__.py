"""The definition of every op that a model is made of, in a few lines of torch each, on any torch device.

A model never calls torch for its heavy work: it is handed an object with these names, which is this module, or
``quire.reference.ops.invariant`` (the same names, with results that do not depend on the batch), or the fast plane's
module of the same shape. The granularity of an op is the unit that is worth fusing into one kernel.
"""

from quire.reference.ops.activation import gelu_new, relu, silu_and_mul
from quire.reference.ops.attention import attention
from quire.reference.ops.cache import AttnMeta, attn_meta, copy_blocks
from quire.reference.ops.linear import embed, linear
from quire.reference.ops.norm import add_rms_norm, layer_norm, rms_norm
from quire.reference.ops.rope import qk_norm_rope

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
