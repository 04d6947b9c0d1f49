"""Where the time of a PPO step on the walker goes, and how much faster it is than Stable-Baselines3's own loops.

Both have the same network, the same environment, the same optimizer and the same number of passes and minibatches. They
take turns, one thread each, and processor time is counted, so that a busy machine is busy for both.
`OMP_NUM_THREADS=1 python -m tests.benchmarks.walker` writes `book/results/benchmarks/walker.json`.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fop_torch.results import write_whole
from fop_torch.studies.bipedal.ppo import Lean, Policy, policy_options
from fop_torch.studies.bipedal.train import METHODS, Config, Watch, build, optimizer
from fop_torch.studies.bipedal.walker import Walker
from fop_torch.training import device_name
from tests.benchmarks.timer import clock, seconds, turns

TIMED, ROUNDS = ("momentum", "Adam", "FOP"), 5
TARGET = Path(__file__).parents[2] / "book" / "results" / "benchmarks" / "walker.json"


class Nowhere:
    """Where `Watch` may log."""

    def log(self, *_: Any) -> None:
        """Nothing."""


def stock(config: Config) -> Callable[[], tuple[float, float]]:
    """The library's loops: seconds of collecting and of updating."""
    from stable_baselines3 import PPO

    ppo = PPO(
        Policy, Walker(config.terrain, config.seed), learning_rate=config.lr, n_steps=config.steps,
        batch_size=config.batch, n_epochs=config.epochs, device="cpu",
        policy_kwargs=policy_options(partial(optimizer, config=config)),
    )  # fmt: skip
    _, callback = ppo._setup_learn(10**9, None)

    def step() -> tuple[float, float]:
        collecting = seconds(lambda: ppo.collect_rollouts(ppo.env, callback, ppo.rollout_buffer, config.steps))
        return collecting, seconds(ppo.train)

    return step


def lean(config: Config) -> Callable[[], dict[str, float]]:
    """Ours: seconds of each part."""
    ppo, walker = build(config)
    walker.reset()
    watch = Watch(ppo, Nowhere(), 256)  # type: ignore[arg-type]

    def step() -> dict[str, float]:
        collecting = seconds(ppo.collect)
        environment = seconds(lambda: simulated(ppo, config))
        spent: dict[str, float] = {"optimizer": 0.0, "watching": 0.0}
        ppo.policy.optimizer.step, ppo.after_step = timed(spent, "optimizer", own), timed(spent, "watching", watch)
        updating = seconds(ppo.train)
        return {
            "environment": environment, "policy and buffer": collecting - environment,
            "gradient": updating - sum(spent.values()), **spent,
        }  # fmt: skip

    own = ppo.policy.optimizer.step
    return step


def simulated(ppo: Lean, config: Config) -> None:
    """As many steps of the environment alone, with the actions that were just taken."""
    walker = Walker(config.terrain, config.seed)
    walker.reset()
    for action in np.clip(ppo.rollout_buffer.actions[:, 0], -1, 1):
        _, _, ended, late, _ = walker.step(action)
        if ended or late:
            walker.reset()


def timed(spent: dict[str, float], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call, and what it took added up."""

    def wrapped(*given: Any, **named: Any) -> Any:
        start = clock()
        found = call(*given, **named)
        spent[name] += clock() - start
        return found

    return wrapped


def main() -> None:
    """Measure and write the record."""
    torch.set_num_threads(1)
    rows = []
    for method in TIMED:
        config = replace(Config(method, 0), lr=METHODS[method])
        ours, theirs = lean(config), stock(config)
        ours(), theirs()
        found: dict[str, list[Any]] = {"ours": [], "library": []}
        for name in turns(found, ROUNDS):
            found[name].append(ours() if name == "ours" else theirs())
        parts = {name: statistics.median(each[name] for each in found["ours"]) for name in found["ours"][0]}
        ratios = [
            sum(slow) / (sum(fast.values()) - fast["watching"])
            for slow, fast in zip(found["library"], found["ours"], strict=True)
        ]
        rows.append({
            "method": method, **parts,
            "library, collecting": statistics.median(each[0] for each in found["library"]),
            "library, updating": statistics.median(each[1] for each in found["library"]),
            "steps a second": config.steps / sum(parts.values()),
            "library, steps a second": config.steps / statistics.median(map(sum, found["library"])),
            "ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios),
        })  # fmt: skip
        print(rows[-1], flush=True)
    record = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "device": device_name(torch.device("cpu")),
        "clock": "processor time", "threads": torch.get_num_threads(), "cores": os.cpu_count(), "rounds": ROUNDS,
        "versions": {name: metadata.version(name) for name in ("torch", "stable-baselines3", "gymnasium", "box2d")},
        "steps": Config.steps, "batch": Config.batch, "epochs": Config.epochs, "rows": rows,
    }  # fmt: skip
    write_whole(TARGET, lambda path: path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8"))


if __name__ == "__main__":
    main()
