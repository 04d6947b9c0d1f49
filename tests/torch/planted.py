"""Runs whose outcome was planted, for summaries to find."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from fop_torch.results import COLUMNS, Record, run_key


def record(study: str, config: Any, rows: Iterable[tuple[int, str, str, float]], status: str = "finished") -> Record:
    """A run in memory with these curves."""
    key = run_key(study, config)
    facts = {
        "study": study, "profile": "laptop", "ended": "2025-01-01T00:00:00Z", "device": "none",
        "versions": {"torch": "2"}, "seconds": 1.0, "data": {"name": "planted", "source": "here", "digest": "0"},
        "code_digest": "0",
    }  # fmt: skip
    made = Record(Path(f"{config.label}-{key}.json"), key, asdict(config), status, facts)
    made.__dict__["metrics"] = pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(COLUMNS)
    return made


def every_run(
    runs: Callable[[str, Sequence[Record]], Sequence[Any]], profile: str, make: Callable[[Any], Record]
) -> list[Record]:
    """Every run of a profile, those that can be named only when others are known too."""
    found: dict[str, Record] = {}
    known: set[Any] = set()
    while new := [c for c in runs(profile, list(found.values())) if c not in known]:
        for config in new:
            made = make(config)
            found[made.key] = made
        known.update(new)
    return list(found.values())
