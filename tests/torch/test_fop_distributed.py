"""Two processes: DistributedDataParallel learns the same M on both, and as one process does; sharding is refused.

`python -m tests.torch.test_fop_distributed RANK FOLDER` is one of the two processes.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam

from fop_torch import FOP, PPHD, SHD, assign

ROOT = Path(__file__).parents[2]
RANKS, STEPS, BAD_STEP = 2, 8, 5
RULES: dict[Any, Any] = {"conv": "spatial", "linear": "low_rank"}
CASES: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9},
    "adam, m-first": {"base": Adam, "order": "m-first"},
    "exact, normalize": {"index": "exact", "normalize": True},
    "gradients that are views": {"momentum": 0.9, "views": True},
    "one process meets a NaN": {"momentum": 0.9, "bad": True},
    "s-hd": {"optimizer": SHD},
    "pp-hd": {"optimizer": PPHD},
}


def network() -> nn.Module:
    """In double precision, so that the rounding of sums stays far below what is compared."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3)
    ).double()


def build(name: str, model: nn.Module) -> FOP:
    options = {"lr": 0.05, "hyper_lr": 0.01, **CASES[name]}
    optimizer_class = options.pop("optimizer", FOP)
    options.pop("views", None)
    options.pop("bad", None)
    params = assign(model, RULES, rank=5) if optimizer_class is FOP else model.parameters()
    optimizer: FOP = optimizer_class(params, **options)
    return optimizer


def loss_of(model: nn.Module, step: int, part: slice, bad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(12, 1, 8, 8, dtype=torch.float64, generator=generator)
    y = torch.randint(3, (12,), generator=generator)
    if bad:
        x = x / 0
    return nn.functional.cross_entropy(model(x[part]), y[part])


def contents(model: nn.Module, optimizer: FOP) -> dict[str, Tensor]:
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    for i, entries in optimizer.state_dict()["state"].items():
        found |= {f"{i}.{key}": value.clone() for key, value in entries.items()}
    return found


def share(rank: int) -> slice:
    return slice(6 * rank, 6 * rank + 6)


# ------------------------------------------------------------------------------------------------ what a process does


def train_in_parallel(name: str, rank: int) -> dict[str, Any]:
    torch.manual_seed(1 + rank)  # another seed on each: DDP hands out the parameters of rank 0, but not M
    model = network()
    views = CASES[name].get("views", False)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=views)
    optimizer = build(name, model)
    first = contents(model, optimizer)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=not views)
        bad = CASES[name].get("bad", False) and step == BAD_STEP and rank == 1
        loss_of(parallel, step, share(rank), bad).backward()
        optimizer.step()
    return {"first": first, "last": contents(model, optimizer), "skipped": optimizer.skipped_steps}


def shard() -> str:
    model = network()
    fully_shard(model)
    try:
        FOP(model.parameters(), lr=0.1)
    except TypeError as error:
        return str(error)
    return "not refused"


def process(rank: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    found: dict[str, Any] = {name: train_in_parallel(name, rank) for name in CASES}
    found["sharded"] = shard()
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


# ------------------------------------------------------------------------------------------------ what one process does


def train_alone(name: str, start: dict[str, Tensor], whole: bool) -> dict[str, Tensor]:
    """The same steps, with the gradient of the whole batch, or with the mean of the two halves' gradients."""
    model = network()
    for key, p in model.named_parameters():
        p.data.copy_(start[key])
    optimizer = build(name, model)
    parts = [slice(None)] if whole else [share(rank) for rank in range(RANKS)]
    for step in range(STEPS):
        if CASES[name].get("bad") and step == BAD_STEP:
            continue
        grads = []
        for part in parts:
            optimizer.zero_grad()
            loss_of(model, step, part).backward()
            grads.append([p.grad / len(parts) for p in model.parameters() if p.grad is not None])
        for p, *each in zip(model.parameters(), *grads, strict=True):
            p.grad = sum(each[1:], each[0])
        optimizer.step()
    return contents(model, optimizer)


def unlike(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of an entry, against the size of the largest entry of its tensor."""
    return max(float((a[key] - b[key]).abs().max() / (a[key].abs().max() + 1e-300)) for key in a)


def test_two_processes_learn_the_same_and_what_one_does(tmp_path: Path) -> None:
    # The loopback device: names of hosts need not resolve.
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.torch.test_fop_distributed"]
    pair = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    try:
        outputs = [each.communicate(timeout=120)[0] for each in pair]
    finally:
        for each in pair:
            each.kill()
    assert [each.returncode for each in pair] == [0, 0], "\n".join(outputs)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for name in CASES:
        a, b = ranks[0][name], ranks[1][name]
        assert unlike(a["first"], b["first"]) == [], name
        assert unlike(a["last"], b["last"]) == [], name
        assert a["skipped"] == b["skipped"] == (1 if CASES[name].get("bad") else 0), name
        # A sum of two numbers doesn't depend on their order: the mean of the two gradients is that of the processes.
        assert unlike(train_alone(name, a["first"], whole=False), a["last"]) == [], name
        # Summing a batch in two halves rounds otherwise, by 1e-16 for each of its terms and steps.
        assert 0 < farthest(train_alone(name, a["first"], whole=True), a["last"]) < 1e-13, name
    for found in ranks:
        assert found["sharded"].startswith("params: sharded parameters (DTensor) are not supported, got one of shape")


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))
