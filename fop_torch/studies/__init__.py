"""One module an experiment of the paper; those that train networks are studies, known by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fop_torch.studies.study import Study

#: Where each study stands; imported when it is asked for.
MODULES = {"mnist": "fop_torch.studies.mnist.train"}


def find(name: str) -> Study:
    """The study of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in MODULES:
        raise ValueError(f"study: expected one of {', '.join(MODULES)}, got {name!r}")
    return import_module(MODULES[name]).STUDY
