"""Many runs: side by side on this machine or on a cluster; what is recorded already is not run again."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import BrokenProcessPool
from tqdm import tqdm

from fop_torch import results
from fop_torch.data import UnavailableError
from fop_torch.results import Record, ResultsError, Store, run_key
from fop_torch.studies import find
from fop_torch.studies.study import Study
from fop_torch.training import Session


class SweepError(RuntimeError):
    """Some runs failed; the message says which and why, the notes where in the code. All others are recorded."""


@dataclass(frozen=True)
class Outcome:
    """How one run ended: recorded, or with an error and where in the code it arose; after how many seconds."""

    label: str
    key: str
    error: str = ""
    trace: str = ""
    seconds: float = 0.0


def run_one(
    study: str, profile: str, config: Any, root: Path, scratch: Path, *, code: str = "", again: bool = False,
    device: str = "auto", threads: int = 1, parent: int = 0, **options: Any,
) -> Outcome:  # fmt: skip
    """Train one run, from its checkpoint if there is one, and record it.

    Args:
        study: Name of the study.
        profile: Name of the profile.
        config: Settings of the run.
        root: Folder of the results.
        scratch: Folder of checkpoints.
        code: Digest of the code, taken when the sweep began: a worker has loaded what stood there then.
        again: Replace a record that is there.
        device: See `Session`.
        threads: Threads of the processor; a different number may give different last bits.
        parent: The process that made this one for the sweep: when it is gone, this one ends. 0: no such process.
        **options: Further ones of `Session`.

    Raises:
        UnavailableError: If the data are not to be had, which ends the sweep: no other run of it would have them.
    """
    started = time.monotonic()
    if parent not in (0, os.getpid()):
        _end_with(parent)
    keep_memory()
    key = run_key(study, config)
    folder = scratch / study / profile
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(root)
    # The processes of torchrun train one run together: the first one holds the lock and writes.
    first = os.environ.get("RANK", "0") == "0"
    try:
        with FileLock(folder / f"{key}.lock", timeout=0) if first else nullcontext():
            if store.find(study, profile, key) is not None and not again:
                return Outcome(config.label, key)
            torch.set_num_threads(threads)
            known = find(study)
            session = Session(study, config, folder, code or known.code(), device=device, **options)
            known.train(config, session, store.load(study, profile))
            try:
                if session.fabric.is_global_zero:
                    facts, rows = session.all_facts(), session.rows
                    store.save(study, profile, config.label, config, session.status, facts, rows, again=again)
                    session.clean()
            finally:
                # The record may name further runs: until it is there, no process goes on, so that all name the same.
                session.fabric.barrier()
        return Outcome(config.label, key, seconds=time.monotonic() - started)
    except Timeout:
        return Outcome(config.label, key, "another process is training this run; wait for it, or end it")
    except ResultsError as error:
        return Outcome(config.label, key, str(error))
    except UnavailableError:
        raise
    except Exception as error:
        said = "".join(traceback.format_exception_only(error)).strip()
        return Outcome(config.label, key, said, traceback.format_exc())


@cache  # one thread that watches is enough
def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed before it can end its workers."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@cache  # once a process
def keep_memory() -> None:
    """Let this process keep the memory that it frees, where its C library is glibc.

    Left alone, that gives large blocks back, and the kernel clears each of their pages when the next step asks again.
    With them kept, CIFAR-10's laptop runs take 1.2 times as many steps a second of one core, and 7 % more memory, with
    the same bits (20 and 22 % more steps in two pairs of processes, taken in turns).
    """
    if platform.libc_ver()[0] == "glibc":
        # From malloc.h: M_MMAP_MAX = -4, no block gets a mapping of its own; M_TRIM_THRESHOLD = -1, at -1 never trim.
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)
        mallopt(-1, -1)


def runs(study: Study, profile: str, records: Sequence[Record], only: Sequence[str] = ()) -> dict[str, Any]:
    """The runs of a profile that can be named now, by their keys.

    Args:
        study: The study.
        profile: Its profile.
        records: What is recorded of it.
        only: Those whose label begins with one of these; all when empty.
    """
    named = study.runs(profile, records)
    return {run_key(study.name, c): c for c in named if not only or c.label.startswith(tuple(only))}


def sweep(
    study: Study, profile: str, *, store: Store | None = None, scratch: Path | None = None, jobs: int = 1,
    cluster: str = "", device: str = "auto", again: bool = False, only: Sequence[str] = (), quiet: bool = False,
    **options: Any,
) -> list[Outcome]:  # fmt: skip
    """Run what is not recorded yet.

    Args:
        study: The study.
        profile: Its profile.
        store: Folder of the results; the book's when left out.
        scratch: Folder of checkpoints; `_build/runs` when left out.
        jobs: Processes on this machine.
        cluster: Address of a Dask scheduler instead, or `"local:N"` for N workers here; they must see the folders.
        device: See `Session`.
        again: Run also what is recorded, and replace it.
        only: Run only those whose label begins with one of these.
        quiet: Don't say how far it is: by a bar, or where the output is not a terminal by a line for each run.
        **options: Of `Session`.

    Raises:
        SweepError: If a run failed; the others are recorded.
        UnavailableError: If the data are not to be had; nothing further is run.
        ValueError: If `jobs` is not positive or no run is meant by `only`.
    """
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    store, scratch = store or results.store(), scratch or results.scratch()
    records = store.load(study.name, profile)
    if not runs(study, profile, records, only):
        kinds = ", ".join(sorted({c.label.rsplit("-s", 1)[0] for c in runs(study, profile, records).values()}))
        raise ValueError(f"only: no run of {study.name}, {profile} begins with {', '.join(only)}; there are {kinds}")
    call = {"code": study.code(), "root": store.root, "scratch": scratch, "again": again, "device": device, **options}
    if not cluster:  # Dask ends its own workers
        call["parent"] = os.getpid()
    outcomes: dict[str, Outcome] = {}
    with _workers(cluster, jobs) as width, _Bar(study.name, profile, scratch, quiet) as bar:
        while True:
            done = outcomes.keys() | (set() if again else {record.key for record in records})
            todo = {key: c for key, c in runs(study, profile, records, only).items() if key not in done}
            if not todo:
                break
            bar.add(todo, call["code"])
            outcomes |= _together(study.name, profile, todo, width, call, bar)
            records = store.load(study.name, profile)
    failed = [outcome for outcome in outcomes.values() if outcome.error]
    if failed:
        raise _failure(failed, len(outcomes))
    return list(outcomes.values())


def _failure(failed: Sequence[Outcome], of: int) -> SweepError:
    """What is told of runs that failed; an error that many have is told once."""
    alike: dict[str, list[Outcome]] = {}
    for each in failed:
        alike.setdefault(each.error, []).append(each)
    lines = [f"{len(failed)} of {of} runs failed{'; the others are recorded' if len(failed) < of else ''}."]
    for said, those in alike.items():
        name = f"{those[0].label} ({those[0].key})"
        lines.append(f"{name if len(those) == 1 else f'{len(those)} runs, such as {name}'}: {said}")
    error = SweepError("\n".join(lines))
    for those in alike.values():
        if those[0].trace:
            error.add_note(f"{those[0].label}:\n{those[0].trace}")
    return error


def _together(
    study: str, profile: str, todo: dict[str, Any], width: int, call: dict[str, Any], bar: _Bar
) -> dict[str, Outcome]:
    """Run some configs side by side; a worker that dies costs what it had done since its last checkpoint."""
    outcomes: dict[str, Outcome] = {}
    deaths = 0
    while len(outcomes) < len(todo):
        before = len(outcomes)
        try:
            tasks = [delayed(run_one)(study, profile, c, **call) for key, c in todo.items() if key not in outcomes]
            for outcome in Parallel(n_jobs=width, return_as="generator_unordered")(tasks):
                outcomes[outcome.key] = outcome
                bar.tell(outcome)
        except BrokenProcessPool as error:
            deaths = deaths + 1 if len(outcomes) == before else 1
            if deaths == 3:
                raise SweepError(
                    f"a worker died three times in a row without finishing a run ({error}); is memory short? Give "
                    "the same command with fewer --jobs: it goes on where it stopped"
                ) from error
    return outcomes


def steps_done(checkpoint: Path, code: str) -> int:
    """Steps after which a run goes on: 0 without a checkpoint of this code, or with a broken one (the run says so)."""
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
        return state["iteration"] if state["code"] == code else 0
    except Exception:
        return 0


@contextmanager
def _workers(cluster: str, jobs: int) -> Iterator[int]:
    """Processes of this machine, or a Dask cluster; gives the number of jobs for joblib."""
    if not cluster:
        yield jobs
        return
    count = cluster.removeprefix("local:")
    here = count != cluster
    if here and not (count.isdecimal() and int(count)):
        raise ValueError(f"cluster: expected local:N or an address such as tcp://host:8786, got {cluster!r}")
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ValueError("cluster: needs dask and distributed: pip install -c constraints.txt '.[cluster]'") from error
    with ExitStack() as opened:
        if here:
            local = LocalCluster(n_workers=int(count), threads_per_worker=1, dashboard_address=None)
            client = Client(opened.enter_context(local))
        else:
            client = Client(cluster)
        opened.enter_context(client)
        with parallel_config(backend="dask", client=client):
            yield -1


class _Bar:
    """How far a sweep is: a bar over the steps of all runs, fed by their heartbeats, or lines without a terminal."""

    def __init__(self, study: str, profile: str, scratch: Path, quiet: bool) -> None:
        self._name, self._folder = f"{study} {profile}", scratch / study / profile
        self._totals: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._quiet, self._told = quiet, 0
        shown = sys.stderr.isatty() and not quiet
        self._bar = tqdm(total=0, unit="step", disable=not shown, smoothing=0.05)
        self._began, self._over, self._counting = time.time(), threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True) if shown else None

    def add(self, runs: dict[str, Any], code: str) -> None:
        """Watch further runs, by their keys; say where those go on that have a checkpoint of this code."""
        self._totals |= {key: config.iterations for key, config in runs.items()}
        self._bar.total = sum(self._totals.values())
        self._bar.set_description(f"{self._name}, {len(self._totals)} runs")
        self._say(f"{self._name}: starting {len(runs)} runs")
        for key, config in runs.items():
            if done := steps_done(self._folder / f"{key}.ckpt", code):
                self._say(f"{config.label}: goes on after step {done:,} of {config.iterations:,}")
                if self._thread:  # they count as done, not as fast
                    self._seen[key] = done
                    self._bar.n += done
                    self._bar.initial += done

    def tell(self, outcome: Outcome) -> None:
        """Say that a run has ended, where no bar shows it."""
        self._told += 1
        if not self._thread:
            how = "failed" if outcome.error else f"{outcome.seconds:.0f} s"
            self._say(f"{outcome.label}: {how}; {self._told} of {len(self._totals)} runs")
        elif not outcome.error:
            self._count(outcome.key, self._totals[outcome.key])

    def _say(self, line: str) -> None:
        if not self._quiet:
            tqdm.write(line, file=sys.stderr)

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            self._look()

    def _look(self) -> None:
        for key in list(self._totals):
            path = self._folder / f"{key}.progress"
            try:
                if path.stat().st_mtime >= self._began:  # else an earlier process left it
                    self._count(key, json.loads(path.read_text(encoding="utf-8"))[0])
            except (OSError, ValueError):  # it has not begun, has ended, or is being written
                continue

    def _count(self, key: str, done: int) -> None:
        with self._counting:
            before = self._seen.get(key, 0)
            if done > before:
                self._bar.update(done - before)
                self._seen[key] = done

    def __enter__(self) -> _Bar:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()
            self._look()
        self._bar.close()
