"""Results of runs: one folder a study and profile, two small files a run, written whole or not at all.

`<label>-<key>.json` holds what was run, on what, with what outcome; `<label>-<key>.parquet` its curves. The JSON
is written last and names the digest of the other: a run counts when both are there and agree.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

#: Columns of a run's curves: the step, the layer ("" is the whole network), what was measured, and the number.
COLUMNS = {"iteration": "int32", "part": "string", "name": "string", "value": "float64"}
PACKAGE = Path(__file__).parent


class ResultsError(RuntimeError):
    """A result cannot be read or written; the message names the file and what to do."""


def run_key(study: str, config: Any) -> str:
    """Twelve hex digits by which a run is known: the hash of its study and its config (a dataclass)."""
    text = json.dumps([study, asdict(config)], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def code_digest(module: str) -> str:
    """Sixteen hex digits over the code of a module and of all of this package that it imports, directly or not.

    Comments, docstrings and layout do not count. Runs recorded before that was so have digests over whole files.
    """
    found: dict[str, ast.Module] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name.split(".")[0] != PACKAGE.name:
            continue
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        if spec is None or spec.origin is None:
            continue
        found[name] = ast.parse(Path(spec.origin).read_bytes())
        for node in ast.walk(found[name]):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(name.encode() + b"\0" + _bare(found[name]).encode() + b"\0")
    return digest.hexdigest()[:16]


def _bare(node: Any) -> str:
    """A syntax tree as text, without docstrings; `ast.dump` writes what is empty in some versions of Python only."""
    if isinstance(node, list):
        return f"[{','.join(map(_bare, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = node.body[ast.get_docstring(node, clean=False) is not None :]
    return f"{type(node).__name__}({','.join(f'{name}={_bare(value)}' for name, value in fields.items())})"


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then put it in its place; on any error nothing has changed.

    Raises:
        ResultsError: If the disk is full or refuses.
    """
    # Several processes may write the same file: each has a partial file of its own.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ResultsError(
            f"{path}: could not be written ({error}); nothing was changed. Free space or choose another folder "
            "(FOP_RESULTS, FOP_SCRATCH), and give the same command again: finished runs are kept"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Record:
    """One finished run.

    Attributes:
        path: Its JSON file.
        key: See `run_key`.
        config: The settings, as a plain dictionary.
        status: `"finished"`, or `"diverged"` where the loss left the numbers and the run ended there.
        facts: What else is known: seed, data, digests, device, versions, seconds, bytes.
    """

    path: Path
    key: str
    config: dict[str, Any]
    status: str
    facts: dict[str, Any]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """The curves, with the columns `COLUMNS`.

        Raises:
            ResultsError: If the file is missing, truncated or not the one that was written with this record.
        """
        path = self.path.with_suffix(".parquet")
        if not path.exists():
            raise ResultsError(f"{path}: missing, though {self.path.name} is there; delete that and run it again")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != self.facts["metrics_sha256"]:
            raise ResultsError(
                f"{path}: its sha256 is {digest[:16]}…, the record says {self.facts['metrics_sha256'][:16]}…; the file "
                "was changed or cut off. Restore it, or delete both files and run it again"
            )
        return pd.read_parquet(path).astype(COLUMNS)

    def curve(self, name: str, part: str = "") -> pd.Series:
        """One measured quantity over the iterations, indexed by them; empty if it was not measured."""
        rows = self.metrics
        rows = rows[(rows["name"] == name) & (rows["part"] == part)]
        return rows.set_index("iteration")["value"]


@dataclass(frozen=True)
class Store:
    """A folder of results: `<root>/<study>/<profile>/`."""

    root: Path

    def folder(self, study: str, profile: str) -> Path:
        """Where a study's runs of one profile lie."""
        return self.root / study / profile

    def find(self, study: str, profile: str, key: str) -> Record | None:
        """The record of a run, or None.

        Raises:
            ResultsError: If its file cannot be read.
        """
        paths = sorted(self.folder(study, profile).glob(f"*-{key}.json"))
        return _read(paths[0]) if paths else None

    def load(self, study: str, profile: str) -> list[Record]:
        """Every record of a study and profile, in the order of their names."""
        return [_read(path) for path in sorted(self.folder(study, profile).glob("*.json"))]

    def save(
        self, study: str, profile: str, label: str, config: Any, status: str, facts: dict[str, Any],
        rows: Iterable[tuple[int, str, str, float]], *, again: bool = False,
    ) -> Record:  # fmt: skip
        """Write a run.

        Args:
            study: Name of the study.
            profile: Name of the profile.
            label: What a reader calls the run; the file's name begins with it.
            config: Dataclass of the settings.
            status: See `Record`.
            facts: See `Record`; the digest of the curves is added.
            rows: The curves, in the order of `COLUMNS`.
            again: May a record that is there be replaced?

        Raises:
            ResultsError: If the run is there already and `again` is False, or the disk refuses.
        """
        key = run_key(study, config)
        path = self.folder(study, profile) / f"{label}-{key}.json"
        if path.exists() and not again:
            raise ResultsError(f"{path}: this run is recorded already; `fop run --again` replaces it")
        table = pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(COLUMNS)
        curves = path.with_suffix(".parquet")
        write_whole(curves, lambda partial: table.to_parquet(partial, index=False, compression="zstd"))
        digest = hashlib.sha256(curves.read_bytes()).hexdigest()
        fields = {
            "study": study, "profile": profile, "key": key, "config": asdict(config), "status": status,
            **facts, "metrics_sha256": digest,
        }  # fmt: skip
        text = json.dumps(fields, indent=1, allow_nan=False) + "\n"
        write_whole(path, lambda partial: _write_text(partial, text))
        return _read(path)


def _read(path: Path) -> Record:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        key, config, status = fields.pop("key"), fields.pop("config"), fields.pop("status")
        return Record(path, key, config, status, fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(
            f"{path}: not a record of a run ({error}); the file was changed or cut off. Restore it, or delete it and "
            "run it again"
        ) from error


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def store() -> Store:
    """The folder of recorded results: `FOP_RESULTS`, else `book/results` of this checkout, else `fop-results` here."""
    if os.environ.get("FOP_RESULTS"):
        return Store(Path(os.environ["FOP_RESULTS"]))
    book = PACKAGE.parent / "book"
    return Store(book / "results" if book.is_dir() else Path("fop-results"))


def scratch() -> Path:
    """The folder of what runs need while they run: `FOP_SCRATCH`, else `_build/runs` of this checkout or of here."""
    if os.environ.get("FOP_SCRATCH"):
        return Path(os.environ["FOP_SCRATCH"])
    return (PACKAGE.parent if (PACKAGE.parent / "book").is_dir() else Path()) / "_build" / "runs"
