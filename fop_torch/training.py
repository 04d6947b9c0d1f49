"""One run in progress: on a device, with its curves, its heartbeat and its checkpoints.

The loop stands once, in `fit`. A run that was killed goes on from its last checkpoint and ends with the same
numbers, to the last bit, as one that was not: everything that a step depends on is in the checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fop_torch.results import ResultsError, run_key, write_whole

#: Packages whose versions a record names.
PACKAGES = ("torch", "torchvision", "numpy", "pytorch-lightning")


class InterruptedRunError(RuntimeError):
    """A run stopped before its end, as it was asked to (tests stop one so)."""


class Session:
    """What `Study.train` gets beside its config.

    Args:
        study: Name of the study.
        config: Dataclass of the run's settings.
        folder: Where checkpoints and the heartbeat go.
        code: Digest of the code, see `results.code_digest`; a checkpoint of other code is not continued.
        device: `"auto"` takes a GPU when there is one.
        precision: Lightning Fabric's, such as `"32-true"` or `"bf16-mixed"`.
        every: Seconds between two checkpoints.
        stop_after: Raise `InterruptedRunError` after so many steps of this process, for tests.

    Attributes:
        rows: The curves so far, `(iteration, part, name, value)`.
        facts: What the study wants to be known of the run; `data` goes here.
        status: `"finished"` unless the loop found otherwise.
    """

    def __init__(
        self, study: str, config: Any, folder: Path, code: str, *, device: str = "auto", precision: str = "32-true",
        every: float = 60.0, stop_after: int | None = None,
    ) -> None:  # fmt: skip
        # torchrun says how many processes there are; alone, a run takes one device.
        here, everywhere = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        # Here and not above: it takes longer to import than torch, and who reads what is recorded does without.
        from lightning_fabric import Fabric

        self.fabric = Fabric(
            accelerator=device,
            devices=here,
            num_nodes=everywhere // here,
            strategy="ddp" if everywhere > 1 else "auto",
            precision=precision,  # type: ignore[arg-type]
        )
        self.fabric.launch()
        self.key, self.code = run_key(study, config), code
        self.config, self.every, self.stop_after = config, every, stop_after
        self.rows: list[tuple[int, str, str, float]] = []
        self.facts: dict[str, Any] = {}
        self.status = "finished"
        self._folder = folder
        self._started = self._saved = self._beaten = time.monotonic()
        self._seconds_before = 0.0
        self._steps = 0

    @property
    def device(self) -> torch.device:
        """Where the run's tensors live."""
        return self.fabric.device

    @property
    def checkpoint(self) -> Path:
        """The run's checkpoint; gone when the run is recorded."""
        return self._folder / f"{self.key}.ckpt"

    @property
    def seconds(self) -> float:
        """Wall time of the run, all its processes together."""
        return self._seconds_before + time.monotonic() - self._started

    def share(self, indices: Tensor) -> Tensor:
        """This process's part of a batch; all parts are equally long, so that the mean of their means is the mean.

        Raises:
            ValueError: If the processes do not divide the batch.
        """
        if len(indices) % self.fabric.world_size:
            raise ValueError(
                f"batch: expected a multiple of the {self.fabric.world_size} processes, got {len(indices)} examples"
            )
        return indices.chunk(self.fabric.world_size)[self.fabric.global_rank]

    def log(self, iteration: int, values: Mapping[str, float], part: str = "") -> None:
        """Add measurements to the curves.

        Args:
            iteration: Steps done.
            values: The numbers by name. A number that is not finite is left out: the curve ends there.
            part: The layer, or "" for the whole network.
        """
        for name, value in values.items():
            if math.isfinite(value):
                self.rows.append((iteration, part, name, float(value)))

    def resume(self, parts: dict[str, Any]) -> int:
        """Fill model, optimizer and the like from the checkpoint, if there is one of this code.

        Args:
            parts: Objects with `state_dict`, by name.

        Returns:
            Steps done: 0 for a new run.

        Raises:
            ResultsError: If the checkpoint cannot be read.
        """
        if not self.checkpoint.exists():
            return 0
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=False)
        except Exception as error:
            raise ResultsError(
                f"{self.checkpoint}: the checkpoint cannot be read ({error}); delete it to train this run anew"
            ) from error
        if state["code"] != self.code:
            return 0  # of other code: its second half would not fit the first
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        self.rows, self._seconds_before = state["rows"], state["seconds"]
        _set_random(state["random"])
        return state["iteration"]

    def save(self, iteration: int, parts: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "code": self.code, "iteration": iteration, "rows": self.rows, "seconds": self.seconds,
            "random": _random(), "parts": {name: part.state_dict() for name, part in parts.items()},
        }  # fmt: skip
        if self.fabric.is_global_zero:
            write_whole(self.checkpoint, lambda partial: torch.save(state, partial))
        self._saved = time.monotonic()

    def after_step(self, iteration: int, of: int, parts: dict[str, Any]) -> None:
        """Tell how far the run is, and save when it is time."""
        self._steps += 1
        now = time.monotonic()
        if now - self._beaten > 0.5 or iteration == of:
            self.beat(iteration, of)
        if now - self._saved > self.every and iteration < of:
            self.save(iteration, parts)
        if self.stop_after is not None and self._steps >= self.stop_after:
            raise InterruptedRunError(f"stopped after {self._steps} steps, as asked")

    def beat(self, iteration: int, of: int) -> None:
        """Write how far the run is, for whoever watches."""
        self._beaten = time.monotonic()
        if self.fabric.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{self.key}.progress"
            path.write_text(json.dumps([iteration, of]), encoding="utf-8")

    def all_facts(self) -> dict[str, Any]:
        """Seed, digests, device, versions, seconds and bytes: what a record holds beside config and curves."""
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        # Kilobytes on Linux, bytes on macOS.
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {
            "seed": asdict(self.config).get("seed"),
            "code_digest": self.code,
            "device": device_name(self.device),
            "processes": self.fabric.world_size,
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(self.seconds, 1),
            "peak_host_bytes": host,
            "peak_device_bytes": peak,
            **self.facts,
        }

    def clean(self) -> None:
        """Remove checkpoint and heartbeat."""
        self.checkpoint.unlink(missing_ok=True)
        (self._folder / f"{self.key}.progress").unlink(missing_ok=True)


class Batches:
    """Which examples a step sees: a function of seed and step alone, so that methods are paired and runs resume.

    Args:
        examples: Number of examples.
        size: Examples a step; the last ones of an epoch that do not fill a batch are left out.
        seed: Of the permutations.
        device: Where the indices are wanted.
    """

    def __init__(self, examples: int, size: int, seed: int, device: torch.device | str = "cpu") -> None:
        if not 1 <= size <= examples:
            raise ValueError(f"size: expected 1 to {examples} (the number of examples), got {size}")
        self._examples, self._size, self._seed, self._device = examples, size, seed, device
        self.per_epoch = examples // size
        self._epoch, self._order = -1, torch.empty(0)

    def __getitem__(self, step: int) -> Tensor:
        """Indices of step 0, 1, 2, …: `[size]`."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self._seed + epoch)
            self._order = torch.randperm(self._examples, generator=generator).to(self._device)
            self._epoch = epoch
        return self._order[position * self._size : (position + 1) * self._size]


def fit(
    session: Session,
    model: nn.Module,
    optimizer: Optimizer,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    *,
    iterations: int,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    measure: Callable[[int], None] | None = None,
    every: int = 200,
    before_step: Callable[[int], None] | None = None,
    parts: Mapping[str, Any] | None = None,
) -> None:
    """Train, from the checkpoint if there is one.

    Args:
        session: The run.
        model: Already on the device, or set up by Fabric.
        optimizer: Likewise.
        batch: Inputs and targets of step 0, 1, 2, ….
        iterations: Steps.
        loss: Of the model's outputs and the targets, a mean.
        measure: Called with the number of steps done, before the first and after every `every`th, to log.
        every: See `measure`. The mean loss of the steps between two measurements is logged as `train_loss`.
        before_step: Called with the step's number when the gradients are there.
        parts: Further objects with `state_dict` that belong into a checkpoint.
    """
    everything = {"model": model, "optimizer": optimizer, **(parts or {})}
    summed = _Sum(session.device)
    everything["summed"] = summed
    done = session.resume(everything)
    if done == 0 and measure is not None:
        measure(0)
    while done < iterations:
        inputs, targets = batch(done)
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        session.fabric.backward(value)
        if before_step is not None:
            before_step(done)
        optimizer.step()
        summed.total += value.detach()
        done += 1
        if done % every == 0 or done == iterations:
            total = torch.as_tensor(session.fabric.all_reduce(summed.total))
            mean = total.item() / (every if done % every == 0 else done % every)
            summed.total.zero_()
            if not math.isfinite(mean):
                session.status = "diverged"
                session.facts["diverged_at"] = done
                session.beat(iterations, iterations)
                return
            session.log(done, {"train_loss": mean})
            if measure is not None:
                measure(done)
        session.after_step(done, iterations, everything)


class _Sum:
    """A sum on the device, as a part of a checkpoint."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), device=device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.total = state["total"].to(self.total.device)


def device_name(device: torch.device) -> str:
    """What a reader calls the device: the card's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _random() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": np.random.get_state(), "python": random.getstate()}  # noqa: NPY002


def _set_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
