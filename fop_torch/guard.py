"""Not finite? Then nothing happened: the check, and the way back, without the host waiting for a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

#: Tensors up to this many entries are looked at together, larger ones each on its own, without a copy.
SMALL = 4096


def finite(tensors: list[Tensor], factors: list[Tensor]) -> Tensor:
    """Is every entry finite, and every factor M small enough for products with P = M M^T to be?

    Args:
        tensors: On any device, of any floating dtype; their sums of magnitudes must be finite too.
        factors: Of these, too, the norm must stay below 1e-10 times the square root of the largest number: then
            `tr P` times a gradient of 1e20 is finite. To look at the products themselves would take another pass
            over all gradients.

    Returns:
        A 0-d bool on the device of the first of them all.
    """
    sums = _total_norms(tensors, 1) + [(1e10 * norm).square() for norm in _total_norms(factors, 2)]
    well = sums[0].isfinite()
    for each in sums[1:]:
        well = well & each.isfinite().to(well.device)
    return well


def _total_norms(tensors: list[Tensor], order: int) -> list[Tensor]:
    """A number for each device, at least the largest norm there, in float32 or wider."""
    small: dict[torch.device, list[Tensor]] = {}
    large: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        (small if tensor.numel() <= SMALL else large).setdefault(tensor.device, []).append(tensor)
    norms = []
    for alike in small.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        norms.append(torch.linalg.vector_norm(flat, order, dtype=_wide(flat)))
    for alike in large.values():
        norms += [torch.linalg.vector_norm(tensor, order, dtype=_wide(tensor)) for tensor in alike]
    return norms


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


class Snapshot:
    """Copies of tensors and of the tensors in optimizers' states, to go back to.

    Args:
        tensors: Tensors that are changed in place.
        states: Dictionaries whose tensors may be changed or replaced and to which entries may be added.
    """

    def __init__(self, tensors: Iterable[Tensor], states: Iterable[dict[str, Any]]) -> None:
        self._tensors = [(tensor, tensor.clone()) for tensor in tensors]
        self._states = [
            (state, dict(state), {key: value.clone() for key, value in state.items() if isinstance(value, Tensor)})
            for state in states
        ]

    def restore(self) -> None:
        """Put everything back as it was."""
        for tensor, old in self._tensors:
            tensor.copy_(old)
        for state, entries, olds in self._states:
            state.clear()
            state.update(entries)
            for key, old in olds.items():
                state[key].copy_(old)

    def restore_unless(self, well: Tensor) -> None:
        """Put tensors back where the 0-d `well` is false; the host doesn't learn which it was."""
        for tensor, old in self._tensors:
            tensor.copy_(torch.where(well, tensor, old))
        for state, _, olds in self._states:
            for key, old in olds.items():
                state[key].copy_(torch.where(well, state[key], old))
