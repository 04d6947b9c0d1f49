"""A run whose worker dies at once: apart, so that six workers do not import torch for that."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    seed: int
    iterations: int = 1

    @property
    def label(self) -> str:
        return f"dying-s{self.seed}"


def run_one(*args: object, **kwargs: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
