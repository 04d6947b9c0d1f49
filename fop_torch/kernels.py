"""A spatial step at the speed of memory, by a small C library where it has been built.

It takes the narrow products, the second of them in one pass with the whole step of SGD where that is the base.
`pip` builds `narrow.c` beside this file if it finds a C compiler (GCC, on Linux, x86-64), and goes on without if not:
once for vectors of eight floats and once for sixteen, which not every processor has. Both give the same bits.
Where the library is missing, older than its source, or made for another processor, and for whatever it doesn't take,
torch's calls stand in.
A group with `foreach=True` asks for torch's calls itself, and gets the same bits with and without the library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fop_torch.preconditioners import Spatial, Tensors

#: Columns for which the library has code of their own.
WIDTHS = (1, 3, 4, 5, 7, 8, 9, 16)
#: For other numbers of columns, up to so many, it has one code, which suits gradients of up to so many entries.
WIDEST, FEW = 64, 2**16
#: A subclass may be anything.
PLAIN = (Tensor, Parameter)
#: Rows of a block in `narrow.c`.
BLOCK = 2048


def load(name: str) -> ctypes.CDLL | None:
    """The library of this name, or None where it wasn't built or doesn't run."""
    if not hasattr(torch._C, "_data_address"):  # another version of torch
        return None
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(name + suffix)
        if path.exists():
            if _changed_since(path):
                return None
            try:
                library = ctypes.CDLL(str(path))
            except OSError:  # built against libraries that this machine doesn't have
                return None
            return library if library.fop_fits() else None
    return None


def _changed_since(path: Path) -> bool:
    """Has the source changed since it was built? In a checkout: what pip has installed has the times of unpacking."""
    source = Path(__file__).with_name("narrow.c")
    in_checkout = source.exists() and (source.parents[1] / "pyproject.toml").exists()
    return in_checkout and source.stat().st_mtime > path.stat().st_mtime


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
        and (m in WIDTHS or (m <= WIDEST and all(T.numel() <= FEW for T in tensors)))
        and not torch.compiler.is_compiling()
        and _get_current_dispatch_mode() is None
        and all(
            type(T) in (Tensor, Parameter) and T.dtype == torch.float32 and T.is_cpu and T.is_contiguous()
            for T in tensors
        )
    )


def times(gradients: Tensors, P: Tensor, outs: Sequence[Tensor | None]) -> list[Tensor]:
    """`preconditioners.times` for gradients that the library takes, of any shape: rows of m floats in a row."""
    into = [torch.empty_like(G) if out is None else out for G, out in zip(gradients, outs, strict=True)]
    P, m = P.contiguous(), P.shape[-1]
    _for(m).fop_times(len(into), _read(gradients), _one(P), _written(into), *_rows(gradients, m))
    return into


def slopes(gradients: Tensors, previous: Tensors, Ms: Tensors) -> list[Tensor]:
    """`(G^T H + H^T G) M` likewise: the first products in blocks of rows, summed in order, however many threads."""
    m = Ms[0].shape[-1]
    found = torch.empty(len(Ms), m, m)
    given = _read(gradients), _read(previous), _read(Ms)
    if _for(m).fop_slopes(len(Ms), *given, _one(found), *_rows(gradients, m)):
        raise MemoryError("FOP: no memory for the Gram matrices of a step")
    return list(found.unbind())


def bounded(tensors: Tensors, most: float) -> bool:
    """Is the sum of the squares of each tensor's entries, taken in single precision, at most that?

    Args:
        tensors: As the library takes them.
        most: At most the largest float, which an infinite sum exceeds, as NaN does any number.
    """
    assert library is not None
    sizes, _, threads = _rows(tensors, 1)
    return bool(library.fop_bounded(len(tensors), _read(tensors), sizes, ctypes.c_float(most), threads))


def joint(Ms: Tensors) -> Tensor:
    """`M M^T` of all layers, `[L, m, m]`."""
    P = torch.empty(len(Ms), *Ms[0].shape)
    _for(P.shape[-1]).fop_joint(len(Ms), _read(Ms), _one(P), P.shape[-1])
    return P


def sgd(
    gradients: Tensors,
    P: Tensor,
    velocities: Tensors,
    params: Tensors,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """The whole step of `torch.optim.SGD` along `G P`, which never lies in memory; to the bits of torch's calls.

    Args:
        gradients: As the library takes them.
        P: `[L, m, m]`.
        velocities: The momentum buffers, none without momentum.
        params: As all of these, written in place.
        lr: Learning rate.
        momentum: 0 without.
        weight_decay: Factor of the parameter that is added to `G P`.
        nesterov: Nesterov's momentum.
    """
    m = P.shape[-1]
    numbers = (ctypes.c_float(each) for each in (lr, momentum, weight_decay))
    given = _read(gradients), _one(P.contiguous()), _written(velocities) if velocities else None, _written(params)
    _for(m).fop_sgd(len(params), *given, *_rows(gradients, m), *numbers, nesterov)
    torch.autograd.graph.increment_version([*velocities, *params])  # as torch does for what it writes in place


def _for(m: int) -> ctypes.CDLL:
    found = wide if wide is not None and (m > 8 or m == 1) else library
    assert found is not None
    return found


def _written(tensors: Tensors) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[T.data_ptr() for T in tensors])


def _read(tensors: Tensors) -> ctypes.Array[ctypes.c_void_p]:
    # `data_ptr` is for writing too: it would make the copy that `bucket.copied_on_write` saves.
    places = [torch._C._data_address(T) + 4 * T.storage_offset() for T in tensors]  # type: ignore[attr-defined]
    return (ctypes.c_void_p * len(tensors))(*places)


def _one(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _rows(tensors: Tensors, m: int) -> tuple[ctypes.Array[ctypes.c_ssize_t], int, int]:
    """How many rows each has, how many columns, and the threads to use."""
    return (ctypes.c_ssize_t * len(tensors))(*[T.numel() // m for T in tensors]), m, torch.get_num_threads()


class CompiledSpatial(Spatial):
    """The spatial form, its products by the library."""

    def joint(self, Ms: Tensors) -> Tensor:
        """`M M^T`."""
        return joint(Ms) if takes(Ms[0].shape[-1], Ms) else super().joint(Ms)

    def times(self, Gs: Tensors, P: Tensor, outs: Sequence[Tensor | None]) -> list[Tensor]:
        """`G P`."""
        taken = takes(P.shape[-1], [*Gs, *(out for out in outs if out is not None)])
        return times(Gs, P, outs) if taken else super().times(Gs, P, outs)

    def slopes(self, Ms: Tensors, Gs: Tensors, Hs: Tensors, projected: Tensors | None = None) -> list[Tensor]:
        """`(G^T H + H^T G) M`."""
        taken = takes(Ms[0].shape[-1], [*Gs, *Hs, *Ms])
        return slopes(Gs, Hs, Ms) if taken else super().slopes(Ms, Gs, Hs, projected)


SPATIAL = CompiledSpatial()
#: What takes the place of `preconditioners.FORMS` unless torch's calls are asked for.
FORMS = {"spatial": SPATIAL}
