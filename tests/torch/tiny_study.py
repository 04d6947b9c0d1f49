"""A study that takes a second: a small network on scikit-learn's digits, and runs that fail as they are asked to.

`register` makes it known to this process. Processes of a sweep import this module with a run's config, and know it so.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fop_torch import FOP
from fop_torch.results import Record
from fop_torch.studies import MODULES
from fop_torch.studies.study import Study
from fop_torch.training import Batches, Session, fit

if multiprocessing.current_process().name != "MainProcess":
    MODULES["tiny"] = __name__

INPUTS, WIDTH, CLASSES, BATCH = 64, 16, 10, 32


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Attributes:
        method: `"momentum"`, `"FOP"`, or `"follower"`: momentum, which can be named only when another run is recorded.
        seed: Of weights, batches and M.
        iterations: Steps.
        lr: Learning rate.
        fail: Half-way, `"raise"` raises, `"nan"` diverges; `"kill"` and `"interrupt"` send SIGKILL and SIGINT to the
            own process, `"hang"` waits for a minute, these the first time only: a file `<key>.failed` beside the
            checkpoint says that it has been.
    """

    method: str = "momentum"
    seed: int = 0
    iterations: int = 30
    lr: float = 0.1
    fail: str = ""

    @property
    def label(self) -> str:
        return "-".join([self.method.lower(), *([self.fail] if self.fail else []), f"s{self.seed}"])


#: The runs of each profile; tests put others in their place, in the process that asks for them.
RUNS = {
    "smoke": [Config(method, seed) for method in ("momentum", "FOP") for seed in range(2)],
    "laptop": [Config("FOP", seed, iterations=60) for seed in range(2)],
    "paper": [Config(method, 0, iterations=300) for method in ("momentum", "FOP")],
}


def runs(profile: str, records: Sequence[Record] = ()) -> list[Config]:
    """The runs of a profile; in the smoke profile one more when the first is recorded."""
    first = any(record.config["method"] == "momentum" for record in records)
    return RUNS[profile] + [Config("follower")] * (profile == "smoke" and first)


def setup(config: Config, device: str) -> tuple[nn.Module, torch.optim.Optimizer, tuple[int, ...], tuple[int, ...]]:
    torch.manual_seed(config.seed)
    with torch.device(device):
        model = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
        if config.method == "FOP":
            optimizer: torch.optim.Optimizer = FOP(
                model.named_parameters(), config.lr, momentum=0.9, preconditioner="low_rank", rank=4, seed=config.seed
            )
        else:
            optimizer = torch.optim.SGD(model.parameters(), config.lr, momentum=0.9)
    return model, optimizer, (BATCH, INPUTS), (BATCH,)


def train(config: Config, session: Session, records: Sequence[Record]) -> None:
    pixels, labels = load_digits(return_X_y=True)
    session.facts["data"] = {"name": "digits", "source": "scikit-learn", "digest": "0123456789abcdef"}
    x = torch.tensor(pixels / 16, dtype=torch.float32, device=session.device)
    y = torch.tensor(labels, device=session.device)
    model, optimizer, _, _ = setup(config, "cpu")
    model, optimizer = session.fabric.setup(model, optimizer)
    batches = Batches(len(x), BATCH, config.seed, session.device)
    marker = session.checkpoint.with_suffix(".failed")

    def batch(step: int) -> tuple[Tensor, Tensor]:
        chosen = session.share(batches[step])
        half = step == config.iterations // 2
        if half and config.fail == "raise":
            raise RuntimeError("broken on purpose")
        if half and config.fail in ("kill", "interrupt", "hang") and not marker.exists():
            marker.touch()
            if config.fail == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if config.fail == "hang":
                time.sleep(60)
            else:
                signal.raise_signal(signal.SIGINT)
        return x[chosen] * (float("nan") if half and config.fail == "nan" else 1.0), y[chosen]

    def measure(step: int) -> None:
        with torch.no_grad():
            right = (model(x).argmax(1) == y).double().mean().item()
        session.log(step, {"accuracy": 100 * right})

    fit(session, model, optimizer, batch, iterations=config.iterations, measure=measure, every=10)


STUDY = Study(
    name="tiny",
    title="Two layers on digits",
    shows="nothing of the paper",
    data=(),
    profiles={"smoke": "everything", "laptop": "most", "paper": "some"},
    runs=runs,
    train=train,
    setup=setup,
    module="fop_torch.training",
)


def register(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make the study the only one that is known here, with results and scratch of its own under `folder`."""
    monkeypatch.setattr("fop_torch.studies.MODULES", {"tiny": __name__})
    monkeypatch.setenv("FOP_RESULTS", str(folder / "results"))
    monkeypatch.setenv("FOP_SCRATCH", str(folder / "scratch"))
    monkeypatch.delenv("FOP_PROFILE", raising=False)
