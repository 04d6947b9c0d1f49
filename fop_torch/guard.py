"""Not finite? Then nothing happened: the check, and the way back, without the host waiting for a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

#: Tensors up to this many entries are looked at together, larger ones each on its own, without a copy.
SMALL = 4096
LARGEST = torch.finfo(torch.float32).max


def total_sizes(tensors: list[Tensor], factors: list[Tensor]) -> list[Tensor]:
    """Numbers of which one is not finite if an entry is not, or if a factor M is too large to be used.

    Args:
        tensors: On any device, of any floating dtype. Their norms must be finite in float32 too.
        factors: Of these, the trace of P = M M^T times a gradient of 1e20 must be finite. To look at the products
            themselves would take another pass over all gradients.

    Returns:
        0-d tensors, one or more for each device.
    """
    return _norms(tensors) + [(1e10 * norm).square_() for norm in _norms(factors)]


def finite(sizes: list[Tensor]) -> Tensor:
    """Are all these numbers finite? A 0-d bool on the first one's device."""
    well = sizes[0].isfinite()
    for size in sizes[1:]:
        well = well & size.isfinite().to(well.device)
    return well


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    small: dict[torch.device, list[Tensor]] = {}
    large: list[Tensor] = []
    for tensor in tensors:
        if tensor.numel() <= SMALL:
            small.setdefault(tensor.device, []).append(tensor)
        else:
            large.append(tensor)
    large += [_flatten_dense_tensors(alike) for alike in small.values()]
    return [torch.linalg.vector_norm(tensor, dtype=_wide(tensor)) for tensor in large]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


class Snapshot:
    """Copies of tensors and of the tensors in optimizers' states, to go back to.

    Args:
        tensors: Tensors that are changed in place.
        states: An optimizer's states and a key of them each: dictionaries that may not exist yet, whose tensors may be
            changed or replaced and to which entries may be added.
    """

    def __init__(self, tensors: Iterable[Tensor], states: Iterable[tuple[dict[Tensor, Any], Tensor]]) -> None:
        self._tensors = [(tensor, tensor.clone()) for tensor in tensors]
        states = list(states)
        self._absent = [(all_states, key) for all_states, key in states if key not in all_states]
        self._states = [
            (all_states, key, state, dict(state), {k: v.clone() for k, v in state.items() if isinstance(v, Tensor)})
            for all_states, key, state in ((each, key, each[key]) for each, key in states if key in each)
        ]

    def restore(self) -> None:
        """Put everything back as it was."""
        for tensor, old in self._tensors:
            tensor.copy_(old)
        for all_states, key, state, entries, olds in self._states:
            all_states[key] = state  # another snapshot may have taken it away
            state.clear()
            state.update(entries)
            for name, old in olds.items():
                state[name].copy_(old)
        for all_states, absent in self._absent:
            all_states.pop(absent, None)

    def restore_unless(self, well: Tensor) -> None:
        """Put tensors back where the 0-d `well` is false; the host doesn't learn which. All states must exist."""
        for tensor, old in self._tensors:
            tensor.copy_(torch.where(well, tensor, old))
        # Parameters share the number that the step put in place of theirs, but not always the one before.
        chosen: dict[tuple[int, int], Tensor] = {}
        for _, _, state, entries, olds in self._states:
            for key, old in olds.items():
                now, before = state[key], entries[key]
                if now is before:
                    now.copy_(torch.where(well, now, old))
                else:
                    pair = (id(now), id(before))
                    if pair not in chosen:
                        chosen[pair] = torch.where(well, now, old)
                    state[key] = chosen[pair]
