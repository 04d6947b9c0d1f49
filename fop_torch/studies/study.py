"""What a study is: frozen settings a run, the runs of a profile, and how one is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fop_torch.results import Record, code_digest
from fop_torch.training import Session

#: smoke: seconds, in every build of the book; laptop: two cores, an evening; paper: the paper's own settings.
PROFILES = ("smoke", "laptop", "paper")


class Config(Protocol):
    """Settings of one run: a frozen dataclass of numbers and strings."""

    seed: int
    iterations: int

    @property
    def label(self) -> str:
        """What a reader calls the run; letters, digits, dots and dashes."""


@dataclass(frozen=True)
class Study:
    """An experiment of the paper.

    Attributes:
        name: As on the command line.
        title: One line.
        shows: What of the paper it judges.
        data: Names of data sets, see `fop_torch.data`.
        profiles: For each profile, what it reduces against the paper.
        runs: The runs of a profile, given those that are recorded: some can be named only when others are known, such
            as the best of a grid. Asked again until nothing new comes.
        train: Trains one, given the recorded runs of the profile.
        setup: Model, optimizer and the shapes of inputs and targets of one step of a run, on a device such as "meta".
            None where a run is many small trainings.
        module: The module whose code decides what a run gives.
    """

    name: str
    title: str
    shows: str
    data: tuple[str, ...]
    profiles: Mapping[str, str]
    runs: Callable[[str, Sequence[Record]], Sequence[Any]]
    train: Callable[[Any, Session, Sequence[Record]], None]
    setup: Callable[[Any, str], tuple[Any, Any, tuple[int, ...], tuple[int, ...]]] | None
    module: str

    def step(self, config: Any, device: str) -> tuple[Any, Any, tuple[int, ...], tuple[int, ...]]:
        """What `setup` gives.

        Raises:
            ValueError: If a run has no step that stands for it.
        """
        if self.setup is None:
            raise ValueError(f"study: a run of {self.name} is many small trainings, which have no one step to plan")
        return self.setup(config, device)

    def code(self) -> str:
        """Digest of the code that decides what a run gives."""
        return code_digest(self.module)


def chosen_profile(given: str | None = None) -> str:
    """The profile that was given, else `FOP_PROFILE`, else smoke.

    Raises:
        ValueError: If it is none of `PROFILES`.
    """
    profile = given or os.environ.get("FOP_PROFILE") or "smoke"
    if profile not in PROFILES:
        where = "profile" if given else "FOP_PROFILE"
        raise ValueError(f"{where}: expected one of {', '.join(PROFILES)}, got {profile!r}")
    return profile
