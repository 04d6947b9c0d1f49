"""What the engine's way of running studies gains: steps a second of a whole machine, against the straightforward loop.

Straightforward: one run at a time on all cores, images decoded and normalised one by one in a DataLoader. The
engine: bytes on the device, a batch at a time, and as many processes of one thread as there are cores. Both train the
same network with the same optimizer on the same number of images. The two take turns, so that a busy machine is busy
for both. `python -m tests.benchmarks.sweep` writes `book/results/benchmarks/sweep.json`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from fop_torch.data import load
from fop_torch.results import write_whole
from fop_torch.studies.mnist import train as mnist
from fop_torch.training import Batches, Session, device_name, fit

KINDS = {
    "momentum": mnist.Config("momentum", 0),
    "FOP, rank 25": mnist.Config("FOP", 0, 25),
    "FOP, full rank": mnist.Config("FOP", 0, 784),
}
STEPS, ROUNDS = 100, 3
TARGET = Path(__file__).parents[2] / "book" / "results" / "benchmarks" / "sweep.json"


class OneByOne(Dataset):
    """MNIST as most scripts read it: an image at a time, through pillow and transforms."""

    def __init__(self) -> None:
        self.x, self.y = load("mnist", stand_in=True).train
        self.ready = v2.Compose(
            [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.1307], [0.3081])]
        )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int):
        return self.ready(functional.to_pil_image(self.x[index])), self.y[index]


def straightforward(config: mnist.Config, steps: int) -> float:
    """Seconds for `steps` steps."""
    model, optimizer = mnist.build(config)
    done, start = -10, 0.0
    while True:
        for inputs, targets in DataLoader(OneByOne(), config.batch, shuffle=True):
            if done == 0:
                start = time.perf_counter()
            if done == steps:
                return time.perf_counter() - start
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            done += 1


def engine(config: mnist.Config, steps: int) -> float:
    """Seconds for `steps` steps of one process."""
    torch.set_num_threads(1)
    ((x, y), _, _), numbers = mnist.split(load("mnist", stand_in=True))
    batches = Batches(len(x), config.batch, 0)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        session = Session("bench", config, Path(folder), "")
        model, optimizer = session.fabric.setup(*mnist.build(config))

        def batch(step: int):
            times.append(time.perf_counter())
            return numbers(x[batches[step]]), y[batches[step]]

        fit(session, model, optimizer, batch, iterations=steps + 11)
    return times[-1] - times[-1 - steps]


def together(name: str, steps: int) -> float:
    """Seconds a run for `steps` steps, with one process a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command = [sys.executable, "-m", "tests.benchmarks.sweep", name, str(steps)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(cores)]
    return statistics.mean(float(each.communicate()[0]) for each in running) / cores


def main() -> None:
    """Measure and write the record; with a kind and a number of steps, be one process of it."""
    if len(sys.argv) > 1:
        print(engine(KINDS[sys.argv[1]], int(sys.argv[2])))
        return
    rows = []
    for name, config in KINDS.items():
        pairs = [(straightforward(config, STEPS), together(name, STEPS)) for _ in range(ROUNDS)]
        ratios = [slow / fast for slow, fast in pairs]
        rows.append({
            "kind": name, "straightforward_ms": 1e3 * statistics.median(p[0] for p in pairs) / STEPS,
            "engine_ms": 1e3 * statistics.median(p[1] for p in pairs) / STEPS,
            "ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios),
        })  # fmt: skip
        print(rows[-1], flush=True)
    images = load("mnist", stand_in=True)
    record = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "data": images.source, "steps": STEPS,
        "rounds": ROUNDS, "rows": rows,
    }  # fmt: skip
    write_whole(TARGET, lambda path: path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8"))


if __name__ == "__main__":
    main()
