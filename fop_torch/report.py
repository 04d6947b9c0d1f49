"""What FOP has learned: looked at once, or recorded over training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fop_torch.bucket import in_autocast
from fop_torch.preconditioners import FORMS, Dense

if TYPE_CHECKING:
    from fop_torch.fop import FOP


class Learned(NamedTuple):
    """What FOP has learned for one parameter.

    Attributes:
        form: Name of the preconditioner's form.
        P: The preconditioner `[m, m]`, or its diagonal for the forms that are diagonal.
        M: Its factor.
        eigenvalues: Of P, ascending.
        condition: The largest eigenvalue over the smallest; infinite where that is zero.
        gain: `|G P| / |G|` for the last gradient, the step-length gain; NaN before the first step.
        angle: Between `G P` and `G`, in degrees.
    """

    form: str
    P: Tensor
    M: Tensor
    eigenvalues: Tensor
    condition: float
    gain: float
    angle: float


def learned(kind: str, M: Tensor, grad: Tensor, normalize: bool) -> Learned:
    """Look at a factor M: its P, eigenvalues, and what P does to a gradient.

    Args:
        kind: A key of `FORMS`.
        M: The factor.
        grad: A gradient of the parameter's shape.
        normalize: Is P divided as in Eq. (11)?
    """
    form = FORMS[kind]
    with _full_precision(M):
        scale = form.scales([M])[0] if normalize and isinstance(form, Dense) else 1.0
        P = scale * form.matrix(M, grad.shape)
        step = scale * form.precondition([M], [grad])[0]
    values = P.sort().values if P.dim() < 2 else torch.full_like(P[0], math.nan)
    if P.dim() == 2 and P.isfinite().all():  # the solver refuses what has grown out of range
        values = torch.linalg.eigvalsh(P)
    size, length = torch.linalg.vector_norm(grad), torch.linalg.vector_norm(step)
    cosine = ((grad * step).sum() / (size * length)).clamp(-1, 1)
    return Learned(
        kind, P, M.clone(), values, float(values[-1] / values[0]) if values[0] else math.inf,
        float(length / size), math.degrees(math.acos(cosine)) if cosine.isfinite() else math.nan,
    )  # fmt: skip


@torch.no_grad()
def preconditioners(optimizer: FOP) -> dict[str, Learned]:
    """See `FOP.preconditioners`."""
    found = {}
    for name, p, group, kind, _ in optimizer._named():
        if kind == "none":
            continue
        state = optimizer.state[p]
        M = state["M"]
        grad = state["prev_grad"].to(M.dtype) if "prev_grad" in state else torch.full_like(p, math.nan, dtype=M.dtype)
        found[name] = learned(kind, M, grad, group["normalize"])
    return found


def memory_usage(optimizer: FOP) -> dict[str, int]:
    """See `FOP.memory_usage`."""
    sizes = {"base": 0, "M": 0, "previous": 0, "hyper": 0}
    for _, p, _, kind, _ in optimizer._named():
        sizes["base"] += _bytes(optimizer.base.state.get(p, {}).values())
        if kind != "none":
            state = optimizer.state[p]
            sizes["M"] += _bytes([state["M"]])
            sizes["previous"] += _bytes(value for key, value in state.items() if key not in ("M", "prev_lr"))
            sizes["hyper"] += _bytes(optimizer._hyper_state(state["M"]).values())
    return sizes


def describe(optimizer: FOP) -> str:
    """See `FOP.describe`."""
    rows = [("parameter", "shape", "preconditioner", "M", "entries")]
    total = 0
    for name, p, _, kind, _ in optimizer._named():
        M = optimizer.state[p]["M"] if kind != "none" else None
        entries = 0 if M is None else M.numel()
        total += entries
        shape = "" if M is None else " x ".join(map(str, M.shape)) or "1"
        rows.append((name, " x ".join(map(str, p.shape)) or "1", kind, shape, f"{entries:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    sizes = ", ".join(f"{name} {size:,}" for name, size in memory_usage(optimizer).items())
    return "\n".join([lines[0], "-" * sum(widths, 8), *lines[1:], f"{total:,} entries of M; bytes of state: {sizes}"])


class Recorder:
    """Records what FOP learns while it trains, every so many steps, on the device, without making the host wait.

    Args:
        optimizer: The optimizer to watch.
        every: Steps between two records, at least 1.

    Raises:
        TypeError: If the optimizer has no preconditioner to record.
        ValueError: If `every` is not a positive whole number.

    Example:
        >>> import torch
        >>> from fop_torch import FOP, Recorder
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> optimizer = FOP(model.named_parameters(), lr=0.1)
        >>> recorder = Recorder(optimizer, every=2)
        >>> for _ in range(4):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(2, 3)).square().mean().backward()
        ...     optimizer.step()
        >>> [(row["step"], row["parameter"]) for row in recorder.rows()]
        [(2, 'weight'), (4, 'weight')]
    """

    def __init__(self, optimizer: FOP, every: int = 100) -> None:
        if not hasattr(optimizer, "preconditioners"):
            raise TypeError(f"optimizer: expected FOP, SHD or PPHD, got {type(optimizer).__name__}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every: expected a whole number, at least 1, got {every!r}")
        self.every = every
        self._steps = 0
        self._records: list[tuple[int, str, Tensor]] = []
        self._hook = optimizer.register_step_post_hook(self._after_step)

    @torch.no_grad()
    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._steps += 1
        if self._steps % self.every:
            return
        for name, p, group, kind, _ in optimizer._named():
            state = optimizer.state.get(p, {})
            if kind == "none" or "prev_grad" not in state:
                continue
            form, M = FORMS[kind], state["M"]
            grad = state["prev_grad"].to(M.dtype)
            with _full_precision(M):
                scale = form.scales([M])[0] if group["normalize"] and isinstance(form, Dense) else 1.0
                step = scale * form.precondition([M], [grad])[0]
            size, length = torch.linalg.vector_norm(grad), torch.linalg.vector_norm(step)
            self._records.append(
                (
                    self._steps,
                    name,
                    torch.stack([length / size, (grad * step).sum() / (size * length), M.square().sum()]),
                )
            )

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary for each record and parameter; reading them waits for the device.

        Returns:
            Dictionaries with `step`, `parameter`, `gain` (`|G P| / |G|` for the gradient of that step), `angle`
            between the two in degrees, and `size` (`|M|_F^2`, for P = M M^T its trace).
        """
        found = []
        for step, name, record in self._records:
            gain, cosine, size = record.tolist()
            angle = math.degrees(math.acos(max(-1.0, min(1.0, cosine)))) if math.isfinite(cosine) else math.nan
            found.append({"step": step, "parameter": name, "gain": gain, "angle": angle, "size": size})
        return found

    def close(self) -> None:
        """Stop recording."""
        self._hook.remove()


def _full_precision(M: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(M.device.type, enabled=False) if in_autocast(M.device) else contextlib.nullcontext()


def _bytes(values: Iterable[Any]) -> int:
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
