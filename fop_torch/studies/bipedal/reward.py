"""What the walker is paid for, and what simple behaviour earns: what Appendix A.5 calls deceptive, computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fop_torch.studies.bipedal.ppo import Episode
from fop_torch.studies.bipedal.walker import COURSE, FALL, Walker

#: What Gymnasium pays for a metre forward, and charges for a radian further from upright and for a joint's full torque
#: during one step.
METRE, RADIAN, TORQUE = 130 / 30, 5.0, 0.00035 * 80
#: Torques that never change. With the first a walker stands with its legs apart, with the second it sinks back a little
#: and sits behind its start, with none it drops.
HABITS = {"stands": (-0.1, 0.1, 0.1, -0.1), "backs off": (0.05, -0.05, -0.05, -0.05), "drops": (0.0, 0.0, 0.0, 0.0)}


def pay(forward: float, leaned: float, torques: np.ndarray) -> float:
    """The reward of a step, or the sum of an episode's before a fall, since the parts add up.

    Args:
        forward: Metres gained.
        leaned: By how many radians the hull is further from upright than before.
        torques: `[4]` or `[steps, 4]`, in [-1, 1].
    """
    return METRE * forward - RADIAN * leaned - TORQUE * float(np.abs(torques).sum())


def worth_a_fall() -> float:
    """Share of the course that pays as much as a fall costs."""
    return -FALL / (METRE * COURSE)


def play(terrain: str, seed: int, choose: Callable[[np.ndarray], np.ndarray]) -> Episode:
    """One episode of a walker whose torques are a function of what it sees: `[24]` to `[4]`."""
    walker = Walker(terrain, seed)
    observation, _ = walker.reset()
    gained, over = 0.0, False
    while not over:
        observation, reward, ended, late, _ = walker.step(choose(observation))
        gained, over = gained + reward, ended or late
    return Episode(gained, walker.steps, walker.share, walker.game_over)


def habit(name: str, seed: int, terrain: str = "BipedalWalker-v3") -> Episode:
    """An episode of a walker with one of the `HABITS`."""
    torques = np.array(HABITS[name], dtype=np.float32)
    return play(terrain, seed, lambda _: torques)
