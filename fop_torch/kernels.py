"""The narrow products of a spatial step at the speed of memory, by a small C library where it has been built.

`pip` builds `narrow.c` beside this file if it finds a C compiler (GCC, on Linux, x86-64), and goes on without if not:
once for vectors of eight floats and once for sixteen, which not every processor has. Both give the same bits.
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

from fop_torch.preconditioners import Spatial, Tensors

#: Columns for which the library has code; one column is for torch's plain calls, and more than 16 suit its products.
WIDTHS = (3, 4, 5, 7, 8, 9, 16)
#: Rows of a block in `narrow.c`.
BLOCK = 2048


def load(name: str) -> ctypes.CDLL | None:
    """The library of this name, or None where it wasn't built or doesn't run."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(name + suffix)
        if path.exists():
            try:
                library = ctypes.CDLL(str(path))
            except OSError:  # built against libraries that this machine doesn't have
                return None
            return library if library.fop_fits() else None
    return None


library = load("_narrow")
#: With vectors of sixteen; a row of eight or fewer would leave half of each empty.
wide = load("_narrow_wide")


def takes(m: int, tensors: Tensors) -> bool:
    """Are these gradients for the library? Not while a graph is traced or somebody counts operations, who'd see none.

    Args:
        m: Columns.
        tensors: Gradients, and whatever is laid out as they are.
    """
    return (
        library is not None
        and (m == 1 or m in WIDTHS)
        and not torch.compiler.is_compiling()
        and _get_current_dispatch_mode() is None
        and all(type(T) is Tensor and T.dtype == torch.float32 and T.is_cpu and T.is_contiguous() for T in tensors)
    )


def times(gradients: Tensors, P: Tensor, outs: Sequence[Tensor | None]) -> list[Tensor]:
    """`preconditioners.times` for gradients that the library takes, of any shape: rows of m floats in a row."""
    into = [torch.empty_like(G) if out is None else out for G, out in zip(gradients, outs, strict=True)]
    m = P.shape[-1]
    if m == 1:
        return [torch.mul(G, K, out=out) for G, K, out in zip(gradients, P.view(-1).unbind(), into, strict=True)]
    P, threads = P.contiguous(), torch.get_num_threads()
    _for(m).fop_times(len(into), _at(gradients), _one(P), _at(into), _rows(gradients, m), m, threads)
    return into


def grams(gradients: Tensors, previous: Tensors, m: int) -> Tensor:
    """`preconditioners.grams` likewise, in blocks of rows whose sums are added in order, however many threads."""
    if m == 1:
        dots = [torch.dot(G.view(-1), H.view(-1)) for G, H in zip(gradients, previous, strict=True)]
        return torch.stack(dots).view(-1, 1, 1)
    C = torch.zeros(len(gradients), m, m)
    rows, threads = _rows(gradients, m), torch.get_num_threads()
    parts = torch.zeros(sum(-(-count // BLOCK) for count in rows), m, m)
    _for(m).fop_grams(len(C), _at(gradients), _at(previous), _one(C), _one(parts), rows, m, threads)
    return C


def _for(m: int) -> ctypes.CDLL:
    found = wide if wide is not None and m > 8 else library
    assert found is not None
    return found


def _at(tensors: Tensors) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[T.data_ptr() for T in tensors])


def _one(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _rows(tensors: Tensors, m: int) -> ctypes.Array[ctypes.c_ssize_t]:
    return (ctypes.c_ssize_t * len(tensors))(*[T.numel() // m for T in tensors])


class CompiledSpatial(Spatial):
    """The spatial form, its products by the library."""

    def times(self, Gs: Tensors, P: Tensor, outs: Sequence[Tensor | None]) -> list[Tensor]:
        """`G P`."""
        taken = takes(P.shape[-1], [*Gs, *(out for out in outs if out is not None)])
        return times(Gs, P, outs) if taken else super().times(Gs, P, outs)

    def grams(self, Gs: Tensors, Hs: Tensors) -> Tensor:
        """`G^T H`."""
        m = self.width(Gs[0].shape)
        return grams(Gs, Hs, m) if takes(m, [*Gs, *Hs]) else super().grams(Gs, Hs)


SPATIAL = CompiledSpatial()
