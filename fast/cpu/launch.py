"""Launching compiled loops on the threads that torch has anyway.

A kernel is a loop in Python that numba compiles (``quire.fast.cpu.kernels``). It is called with addresses and numbers,

    scale(x.data_ptr(), len(x), 0.5, threads=2)

and each thread finds them, with its own part of the work, by ``arguments(at)``.

The idea is in the launch. numba's own parallel loops bring a second pool of threads, and two pools on the same cores
hinder each other, because idle threads keep spinning for a while: 30 µs per launch and more. torch runs its operators
by ``#pragma omp parallel``, which in machine code is one function, ``GOMP_parallel(function, argument, threads)``.
Called with the address of a compiled kernel it runs that on torch's threads; a launch costs 2.5 µs, like the smallest
of torch's operators. Where torch's OpenMP has no such function (macOS, Windows) kernels run in one thread.

numba keeps machine code on disk, in ``__pycache__`` or the user's cache folder. A kernel is compiled, or loaded from
there, when an engine starts (``loading``) or when it is launched for the first time: importing this plane compiles
nothing.
"""

from __future__ import annotations

import ctypes
import logging
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

logger = logging.getLogger("quire.fast")
MOST = 32  # arguments of a kernel

# OpenMP's answers to a running kernel, by names that ``_openmp`` binds to addresses.
_thread_num = types.ExternalFunction("quire_omp_get_thread_num", types.int32())
_num_threads = types.ExternalFunction("quire_omp_get_num_threads", types.int32())


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """An integer as a pointer, from which ``carray`` makes an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask the processor to bring the line at an address into its second cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        i32 = ir.IntType(32)
        intrinsic = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32]), "llvm.prefetch.p0"
        )
        builder.call(intrinsic, [place, i32(0), i32(2), i32(1)])
        return context.get_dummy_value()

    return types.none(types.int64), generate


@njit
def arguments(at):
    """In a kernel: its arguments as int64 and as float64 (each is valid as one of them), and (part, parts)."""
    return carray(at, MOST, np.int64), carray(at, MOST, np.float64), _thread_num(), _num_threads()


class Kernel:
    """A compiled loop; see ``kernel``."""

    def __init__(self, body: Callable[[Any], None], layout: str) -> None:
        self.body = body
        self._pack = struct.Struct(layout).pack
        self._compiled: Any = None  # kept: the machine code lives as long as this
        self._address = 0

    def load(self) -> None:
        """Compile it, or load what was compiled, if that has not been done."""
        if not self._address:
            self._compiled = _compile(self.body)
            self._address = self._compiled.address

    def __call__(self, *values: float, threads: int = 1) -> None:
        """Run on this many threads, and return when all are done. Tensors are given by their ``data_ptr()``."""
        if not self._address:
            self.load()
        _openmp()(self._address, self._pack(*values), threads, 0)


def kernel(layout: str) -> Callable[[Callable[[Any], None]], Kernel]:
    """Make a kernel of a function of one argument, the address for ``arguments``.

    layout: the kinds of the arguments as ``struct`` writes them, q for int64 and d for float64
    """
    return lambda body: Kernel(body, layout)


def threads_for(work: int, grain: int) -> int:
    """As many of torch's threads as have at least ``grain`` units of work each; at least one."""
    return max(1, min(torch.get_num_threads(), work // grain))


def rows_dense(x: Tensor) -> Tensor:
    """x [T, N] or [T, H, D], or a copy of it, each of whose rows x[t] is dense, as the kernels need it."""
    strides = x.stride()
    if strides[-1] == 1 and (len(strides) == 2 or strides[1] == x.shape[2]):
        return x
    return x.contiguous()


def empty_result(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor for a kernel's result: kernels write float32 in place of float16, and the caller rounds it."""
    return torch.empty(shape, dtype=torch.float32 if dtype == torch.float16 else dtype)


def _compile(body: Callable[[Any], None]) -> Any:
    _openmp()
    signature = types.void(types.voidptr)
    try:
        compiled = cfunc(signature, cache=True, error_model="numpy")(body)
    except RuntimeError:  # no folder that numba could keep it in
        compiled = cfunc(signature, error_model="numpy")(body)
    if not compiled.cache_hits:
        _say_why_it_takes_so_long()
    return compiled


@cache
def _say_why_it_takes_so_long() -> None:
    """Once: the first kernel has been compiled, and others follow, which takes seconds in all."""
    logger.warning("compiling loops for this processor; this takes some seconds, once")


@cache
def _openmp() -> Callable[[int, bytes, int, int], None]:
    """The function that runs a kernel on torch's threads."""
    library = ctypes.CDLL(torch._C.__file__)  # finds names in what torch is linked with, too
    try:
        parallel, queries = library.GOMP_parallel, (library.omp_get_thread_num, library.omp_get_num_threads)
    except AttributeError:
        return _in_one_thread()
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    for symbol, function in zip((_thread_num.symbol, _num_threads.symbol), queries):
        llvm.add_symbol(symbol, ctypes.cast(function, ctypes.c_void_p).value)
    return parallel


def _in_one_thread() -> Callable[[int, bytes, int, int], None]:
    for symbol, answer in ((_thread_num.symbol, _zero), (_num_threads.symbol, _one)):
        llvm.add_symbol(symbol, cfunc(types.int32())(answer).address)

    def run(address: int, argument: bytes, threads: int, flags: int) -> None:
        ctypes.CFUNCTYPE(None, ctypes.c_char_p)(address)(argument)

    return run


def _zero() -> int:
    return 0


def _one() -> int:
    return 1
