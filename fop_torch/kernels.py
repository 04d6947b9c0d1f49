"""The narrow products of a spatial step at the speed of memory, by a small C library where it has been built.

`pip` builds `narrow.c` beside this file if it finds a C compiler (GCC, on Linux, x86-64), and goes on without if not.
Where the library is missing, or made for another processor, and for whatever it doesn't take, torch's calls stand in.
A group with `foreach=True` asks for torch's calls itself, and gets the same bits with and without the library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fop_torch import preconditioners
from fop_torch.preconditioners import Spatial, Tensors

#: Columns for which the library has code; one column is for torch's plain calls, and more than 16 suit its products.
WIDTHS = (3, 4, 5, 7, 8, 9, 16)
#: Rows of a block in `narrow.c`.
BLOCK = 2048


def load() -> ctypes.CDLL | None:
    """The library, or None where it wasn't built or doesn't run."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_narrow{suffix}")
        if path.exists():
            try:
                library = ctypes.CDLL(str(path))
            except OSError:  # built against libraries that this machine doesn't have
                return None
            return library if library.fop_fits() else None
    return None


library = load()


def takes(tensors: Tensors) -> bool:
    """Are these rows for the library? Not while a graph is traced or somebody counts operations: they'd see none."""
    return (
        library is not None
        and not torch.compiler.is_compiling()
        and _get_current_dispatch_mode() is None
        and all(
            type(T) is Tensor
            and T.dtype == torch.float32
            and T.device.type == "cpu"
            and T.dim() == 2
            and (T.shape[1] == 1 or T.shape[1] in WIDTHS)
            and T.is_contiguous()
            for T in tensors
        )
    )


def times(gradients: Tensors, P: Tensor, outs: Sequence[Tensor | None]) -> list[Tensor]:
    """`preconditioners.times`."""
    given = [out for out in outs if out is not None]
    if library is None or not takes([*gradients, *given]):
        return preconditioners.times(gradients, P, outs)
    into = [torch.empty_like(G) if out is None else out for G, out in zip(gradients, outs, strict=True)]
    if P.shape[-1] == 1:
        return [torch.mul(G, K, out=out) for G, K, out in zip(gradients, P.unbind(), into, strict=True)]
    P = P.contiguous()
    m, threads = P.shape[-1], torch.get_num_threads()
    library.fop_times(len(into), _at(gradients), _one(P), _at(into), _rows(gradients), m, threads)
    return into


def grams(gradients: Tensors, previous: Tensors) -> Tensor:
    """`preconditioners.grams`, in blocks of rows whose sums are added in order, whatever the number of threads."""
    if library is None or not takes([*gradients, *previous]):
        return preconditioners.grams(gradients, previous)
    m = gradients[0].shape[1]
    if m == 1:
        return torch.stack([G.mT @ H for G, H in zip(gradients, previous, strict=True)])
    C = torch.zeros(len(gradients), m, m)
    parts = torch.zeros(sum(-(-len(G) // BLOCK) for G in gradients), m, m)
    threads = torch.get_num_threads()
    library.fop_grams(len(C), _at(gradients), _at(previous), _one(C), _one(parts), _rows(gradients), m, threads)
    return C


def _at(tensors: Tensors) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[T.data_ptr() for T in tensors])


def _one(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _rows(tensors: Tensors) -> ctypes.Array[ctypes.c_ssize_t]:
    return (ctypes.c_ssize_t * len(tensors))(*[len(T) for T in tensors])


class CompiledSpatial(Spatial):
    """The spatial form, its products by the library."""

    times = staticmethod(times)
    grams = staticmethod(grams)


SPATIAL = CompiledSpatial()
