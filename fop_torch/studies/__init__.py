"""One module an experiment of the paper; those that train networks are studies, known by name."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fop_torch.results import Record
    from fop_torch.studies.study import Study

#: Where each study stands; imported when it is asked for.
MODULES = {
    "mnist": "fop_torch.studies.mnist.train",
    "cifar10": "fop_torch.studies.cifar10.train",
    "imagenet": "fop_torch.studies.imagenet.train",
    "robustness": "fop_torch.studies.robustness.train",
    "bipedal": "fop_torch.studies.bipedal.train",
    "repair": "fop_torch.studies.repair.train",
}


def find(name: str) -> Study:
    """The study of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in MODULES:
        raise ValueError(f"study: expected one of {', '.join(MODULES)}, got {name!r}")
    return import_module(MODULES[name]).STUDY


def live(name: str, profile: str | None = None, *, jobs: int = 1) -> list[Record]:
    """The runs of a profile, trained now as far as they aren't recorded; smoke runs always anew.

    Args:
        name: Name of the study.
        profile: Its profile; `FOP_PROFILE` or smoke when left out.
        jobs: Processes.
    """
    from fop_torch import results
    from fop_torch.studies.study import chosen_profile
    from fop_torch.sweep import sweep

    study, profile = find(name), chosen_profile(profile)
    if profile != "smoke":
        sweep(study, profile, jobs=jobs, quiet=True)
        return results.store().load(name, profile)
    with tempfile.TemporaryDirectory() as folder:
        store = results.Store(Path(folder))
        sweep(study, profile, store=store, scratch=Path(folder) / "scratch", jobs=jobs, quiet=True)
        records = store.load(name, profile)
        for record in records:
            _ = record.metrics  # read before the folder is gone
        return records


def recorded(name: str, profile: str | None = None) -> list[Record]:
    """The recorded runs of a profile, or of the best profile that has any: paper before laptop.

    Raises:
        FileNotFoundError: If nothing is recorded.
    """
    from fop_torch import results

    store = results.store()
    for each in (profile,) if profile else ("paper", "laptop"):
        records = store.load(name, each)
        if records:
            return records
    raise FileNotFoundError(
        f"no recorded runs of {name} under {store.root}; make them with: fop run {name} --profile {profile or 'laptop'}"
    )


def provenance(study: Study, records: Sequence[Record]) -> dict[str, Any]:
    """Where records come from: counts, dates, devices, data, and whether the code is still what it was."""
    code = study.code()
    earlier = sum(record.facts["code_digest"] != code for record in records)
    facts = [record.facts for record in records]
    data = {f"{f['data']['name']}, {f['data']['source']}, {f['data']['digest']}" for f in facts}
    return {
        "runs": len(records),
        "diverged": sum(record.status == "diverged" for record in records),
        "ended": f"{min(f['ended'] for f in facts)} to {max(f['ended'] for f in facts)}",
        "device": "; ".join(sorted({f["device"] for f in facts})),
        "torch": "; ".join(sorted({f["versions"]["torch"] for f in facts})),
        "data": "; ".join(sorted(data)),
        "hours of computing": round(sum(f["seconds"] for f in facts) / 3600, 1),
        "code": f"{earlier} runs by an earlier state of it; git shows what has changed since"
        if earlier
        else "as it stands",
    }
