"""Not finite? Then nothing happened: the check, and the way back, without the host waiting for a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def finite(tensors: list[Tensor]) -> Tensor:
    """Are all entries of all tensors finite (and their sums of magnitudes too)?

    Args:
        tensors: At least one, on any device, of any floating dtype.

    Returns:
        A 0-d bool on the first tensor's device.
    """
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        by_kind.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    sums = [torch.stack(torch._foreach_norm(alike, 1)).sum() for alike in by_kind.values()]
    well = sums[0].isfinite()
    for each in sums[1:]:
        well = well & each.isfinite().to(well.device)
    return well


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
