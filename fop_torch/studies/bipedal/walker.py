"""The walker: Gymnasium's, on one landscape, with the paper's limit, each episode a function of its seed and actions.

Three things differ from `gymnasium.make`. The landscape stays, as Appendix A.5 says, where Gymnasium draws a new one
for each episode. An episode ends after 2000 steps on both terrains, where Gymnasium has 1600 on the easier one. Each
episode has a world of its own: in one that had bodies before, Box2D keeps their order, and so other last bits.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

with warnings.catch_warnings():
    # Box2D's wrapper was made by an older SWIG; where that warning is an error, its import crashes the interpreter.
    warnings.simplefilter("ignore")
    import Box2D
    from gymnasium.envs.box2d.bipedal_walker import (
        TERRAIN_GRASS,
        TERRAIN_LENGTH,
        TERRAIN_STARTPAD,
        TERRAIN_STEP,
        BipedalWalker,
    )

#: The two terrains by the names that Gymnasium gives them: is it the one with stumps, pits and stairs?
TERRAINS = {"BipedalWalker-v3": False, "BipedalWalkerHardcore-v3": True}
#: Steps of an episode, at most (Section 4.4).
LIMIT = 2000
#: What a fall costs (Appendix A.5).
FALL = -100.0
#: Where the hull starts, and the way from there to the end, in the simulator's metres.
START = TERRAIN_STEP * TERRAIN_STARTPAD / 2
COURSE = TERRAIN_STEP * (TERRAIN_LENGTH - TERRAIN_GRASS) - START


class WalkerError(RuntimeError):
    """The environment failed, not the optimizer: the message says which and when, and the run is not recorded."""


class Walker(BipedalWalker):
    """The environment of one run.

    The force on the hull at the start of an episode is drawn anew for each. The paper says so of the position too, and
    not how; neither Gymnasium nor the authors' environment of that time (POET's) draws it, and it is not drawn here.

    Args:
        terrain: A name of `TERRAINS`.
        seed: Of the episodes.
        landscape: The seed with which Gymnasium's reset would draw this landscape.
        render_mode: See Gymnasium.

    Attributes:
        episode: Number of the present one: 0, 1, …; -1 before the first.
        actions: What was done in it so far.

    Raises:
        ValueError: If the terrain is unknown.
    """

    def __init__(self, terrain: str, seed: int = 0, landscape: int = 0, render_mode: str | None = None) -> None:
        if terrain not in TERRAINS:
            raise ValueError(f"terrain: expected one of {', '.join(TERRAINS)}, got {terrain!r}")
        super().__init__(render_mode, TERRAINS[terrain])
        self._seed, self._landscape = seed, landscape
        self.episode = -1
        self.actions: list[np.ndarray] = []
        self._observed = np.zeros(24, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin the next episode.

        Args:
            seed: Not to be given: the run's seed and the episode's number decide.
            options: Likewise.
        """
        if seed is not None or options:
            raise ValueError(f"seed, options: a walker has its own seed, got {seed!r}, {options!r}")
        self.episode += 1
        return self._begin()

    def _begin(self) -> tuple[np.ndarray, dict]:
        self.actions = []
        self._destroy()
        self.world = Box2D.b2World()
        (number,) = np.random.SeedSequence([self._seed, self.episode]).generate_state(1)
        self._observed, told = super().reset(seed=int(number))
        self.actions = []  # reset takes a step
        return self._observed, told

    def _generate_terrain(self, hardcore: bool) -> None:
        with _other(self, np.random.default_rng(self._landscape)):
            super()._generate_terrain(hardcore)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One fiftieth of a second.

        Args:
            action: Torques in [-1, 1], `[4]`.

        Returns:
            Observation `[24]`, reward, whether it fell or arrived, whether the time is over, and an empty dictionary.

        Raises:
            WalkerError: If the environment raises, or gives what is not a number.
        """
        self.actions.append(np.array(action))
        try:
            self._observed, reward, ended, _, told = super().step(action)
        except Exception as error:
            raise WalkerError(f"{self._where()}: {type(error).__name__}: {error}") from error
        # The sum of 24 bounded numbers is one unless one of them is none.
        if not math.isfinite(reward + self._observed.sum()):
            raise WalkerError(f"{self._where()}: reward {reward}, observation {self._observed.tolist()}")
        return self._observed, float(reward), ended, not ended and len(self.actions) >= LIMIT, told

    def _where(self) -> str:
        name = next(name for name, hardcore in TERRAINS.items() if hardcore == self.hardcore)
        return f"{name}, seed {self._seed}, episode {self.episode}, step {self.steps}"

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint. Box2D's world cannot be copied: what made it stands for it."""
        return {"episode": self.episode, "actions": np.array(self.actions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint: the episode is played again to where it was.

        Args:
            state: Of a walker of the same terrain, seed and landscape.
        """
        self.episode = state["episode"]
        self._begin()
        for action in state["actions"]:
            self.step(action)

    @property
    def steps(self) -> int:
        """Taken in the present episode."""
        return len(self.actions)

    @property
    def share(self) -> float:
        """Of the way to the end, how much it has gone; negative behind the start."""
        return (self.hull.position.x - START) / COURSE  # type: ignore[union-attr]

    @property
    def observed(self) -> np.ndarray:
        """The last observation, `[24]`."""
        return self._observed


@contextmanager
def _other(walker: Walker, generator: np.random.Generator) -> Iterator[None]:
    """Another source of random numbers for a while."""
    kept, walker.np_random = walker.np_random, generator
    try:
        yield
    finally:
        walker.np_random = kept


def digest(terrain: str, landscape: int = 0, steps: int = 50) -> str:
    """Sixteen hex digits of the landscape and of what the walker sees on it, moved by random torques.

    Args:
        terrain: See `Walker`.
        landscape: Likewise.
        steps: Random steps.
    """
    walker = Walker(terrain, 0, landscape)
    seen = [walker.reset()[0]]
    generator = np.random.default_rng(0)
    seen += [walker.step(generator.uniform(-1, 1, 4).astype(np.float32))[0] for _ in range(steps)]
    heights = np.array(walker.terrain_y)
    return hashlib.sha256(heights.tobytes() + np.array(seen).tobytes()).hexdigest()[:16]
