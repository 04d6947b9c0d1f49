"""Sweeps: what is recorded is not run again, what fails costs nothing else, and a worker's death costs little."""

from __future__ import annotations

import io
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from filelock import FileLock

from fop_torch import studies
from fop_torch.results import Store, run_key
from fop_torch.studies import live, recorded
from fop_torch.studies.study import chosen_profile
from fop_torch.sweep import Outcome, SweepError, _Bar, runs, sweep
from tests.torch import dying, tiny_study
from tests.torch.tiny_study import STUDY, Config

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Store:
    tiny_study.register(monkeypatch, tmp_path)
    threads = torch.get_num_threads()
    yield Store(tmp_path / "results")
    torch.set_num_threads(threads)


def asked(monkeypatch, *configs: Config) -> None:
    monkeypatch.setitem(tiny_study.RUNS, "laptop", list(configs))


def curves(store: Store, profile: str = "laptop") -> dict[str, list]:
    return {record.path.stem: record.metrics.values.tolist() for record in store.load("tiny", profile)}


def test_every_run_is_recorded_once(store) -> None:
    outcomes = sweep(STUDY, "smoke")
    labels = [outcome.label for outcome in outcomes]
    assert sorted(labels) == ["follower-s0", "fop-s0", "fop-s1", "momentum-s0", "momentum-s1"]
    # What can be named only when another run is recorded comes after it.
    assert labels[-1] == "follower-s0"
    records = store.load("tiny", "smoke")
    assert runs(STUDY, "smoke", records).keys() == {record.key for record in records}
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*.*")}
    assert sweep(STUDY, "smoke") == []
    assert before == {path: path.stat().st_mtime_ns for path in store.root.rglob("*.*")}


def test_processes_give_the_same_bits_as_one(store, tmp_path) -> None:
    sweep(STUDY, "smoke")
    other = Store(tmp_path / "other")
    sweep(STUDY, "smoke", store=other, scratch=tmp_path / "scratch2", jobs=2)
    assert curves(store, "smoke") == curves(other, "smoke")


def test_again_replaces(store) -> None:
    sweep(STUDY, "smoke", only=["fop-s0"])
    (record,) = store.load("tiny", "smoke")
    before = record.path.stat().st_mtime_ns
    sweep(STUDY, "smoke", only=["fop-s0"], again=True)
    (record,) = store.load("tiny", "smoke")
    assert record.path.stat().st_mtime_ns > before


def test_a_run_that_fails_costs_no_other(store, monkeypatch) -> None:
    asked(monkeypatch, Config(fail="raise"), Config(seed=1))
    with pytest.raises(SweepError, match=r"(?s)1 of 2 runs failed.*momentum-raise-s0.*broken on purpose"):
        sweep(STUDY, "laptop")
    assert [record.config["seed"] for record in store.load("tiny", "laptop")] == [1]


def test_a_run_that_diverges_is_a_result(store, monkeypatch) -> None:
    asked(monkeypatch, Config(fail="nan"))
    sweep(STUDY, "laptop")
    (record,) = store.load("tiny", "laptop")
    assert record.status == "diverged"
    assert record.facts["diverged_at"] == 20
    assert record.curve("accuracy").index.tolist() == [0, 10]


@pytest.mark.parametrize("cluster", ["", "local:2"], ids=["processes", "dask"])
def test_a_killed_worker_costs_only_what_it_had_not_saved(store, monkeypatch, tmp_path, cluster) -> None:
    """SIGKILL in the middle of one run, on two workers; the runs end with the bits of runs that were left alone."""
    killed = [Config("FOP", 0, fail="kill"), Config("FOP", 1), Config("FOP", 2)]
    asked(monkeypatch, *killed)
    sweep(STUDY, "laptop", jobs=2, cluster=cluster, every=0.0)
    assert len(store.load("tiny", "laptop")) == 3
    assert list((tmp_path / "scratch").rglob("*.failed"))
    asked(monkeypatch, *(replace(config, fail="") for config in killed))
    whole = Store(tmp_path / "whole")
    sweep(STUDY, "laptop", store=whole, scratch=tmp_path / "scratch2")
    assert sorted(curves(store).values()) == sorted(curves(whole).values())


def test_a_worker_that_always_dies_ends_the_sweep(store, monkeypatch) -> None:
    monkeypatch.setitem(tiny_study.RUNS, "laptop", [dying.Config(seed) for seed in range(2)])
    monkeypatch.setattr("fop_torch.sweep.run_one", dying.run_one)
    with pytest.raises(SweepError, match=r"(?s)died three times in a row.*fewer --jobs"):
        sweep(STUDY, "laptop", jobs=2)


KEEPING = """
import hashlib
import resource

import torch
from torch import nn

from fop_torch import FOP
from fop_torch.sweep import keep_memory


def run():
    "Blocks above the 32 MB from which glibc gives back what is freed, whatever came before."
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    optimizer = FOP(model.named_parameters(), lr=0.01, momentum=0.9)
    x, y = torch.randn(300, 3, 32, 32), torch.randint(10, (300,))
    for step in range(5):
        if step == 1:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    print(hashlib.sha256(weights).hexdigest(), faults)


run()
keep_memory()
run()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to set")
def test_memory_that_is_kept_saves_the_kernel_work_and_changes_no_bit() -> None:
    """In a process that has kept none so far."""
    told = subprocess.run([sys.executable, "-c", KEEPING], cwd=ROOT, capture_output=True, text=True, check=True)
    (bits, faults), (same, fewer) = (line.split() for line in told.stdout.splitlines())
    assert bits == same
    assert int(fewer) < int(faults) / 4


COMMAND = """
from fop_torch import cli
from fop_torch.studies import MODULES
from tests.torch import dying, tiny_study

MODULES["tiny"] = tiny_study.__name__
tiny_study.RUNS["laptop"] = [tiny_study.Config(seed=seed, fail="hang") for seed in range(2)]
cli.main(["run", "tiny", "--profile", "laptop", "--jobs", "2"], prog_name="fop")
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_worker_outlives_its_command(store, monkeypatch, tmp_path, number, code) -> None:
    """The command ended by `kill`, or by `kill -9`, which it cannot answer, while both workers are at work."""
    command = subprocess.Popen([sys.executable, "-c", COMMAND], cwd=ROOT)
    while len(list((tmp_path / "scratch").rglob("*.failed"))) < 2:
        assert command.poll() is None
        time.sleep(0.1)
    workers = psutil.Process(command.pid).children(recursive=True)
    assert len(workers) >= 2
    command.send_signal(number)
    assert command.wait(timeout=20) == code
    # Within 20 of the 60 seconds for which a run hangs.
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert store.load("tiny", "laptop") == []
    asked(monkeypatch, *(Config(seed=seed, fail="hang") for seed in range(2)))
    sweep(STUDY, "laptop")
    assert len(store.load("tiny", "laptop")) == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_counts_what_was_done_and_no_more(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("fop_torch.sweep.steps_done", lambda path, code: 20 if path.name == "gone on.ckpt" else 0)
    folder = tmp_path / "tiny" / "smoke"
    folder.mkdir(parents=True)
    for key in ("begun", "gone on"):  # left by the process before
        (folder / f"{key}.progress").write_text("[25, 30]", encoding="utf-8")
        os.utime(folder / f"{key}.progress", (0, 0))
    bar = _Bar("tiny", "smoke", tmp_path, quiet=False)
    bar.add({key: Config() for key in ("begun", "gone on", "failed")}, "code")
    bar._look()
    assert (bar._bar.n, bar._bar.total) == (20, 90)
    for said, counted in (("", 20), ("[3, 30]", 23), ("[", 23), ("[9, 30]", 29)):  # some are read half-written
        (folder / "begun.progress").write_text(said, encoding="utf-8")
        bar._look()
        assert bar._bar.n == counted
    (folder / "begun.progress").unlink()
    bar._look()
    assert bar._bar.n == 29
    bar.tell(Outcome("", "begun"))
    bar.tell(Outcome("", "failed", error="broken"))
    assert (bar._bar.n, bar._bar.initial) == (50, 20)
    bar.tell(Outcome("", "gone on"))
    assert bar._bar.n == 60
    bar._bar.close()


def test_a_terminal_gets_a_bar(store, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    sweep(STUDY, "smoke")
    lines = re.split(r"[\r\n]+", sys.stderr.getvalue())
    assert any(re.match(r"tiny smoke, 5 runs: 100%.* 150/150 \[.*step/s\]", line) for line in lines), lines[-5:]
    assert "tiny smoke: starting 4 runs" in lines


def test_a_run_that_another_process_trains_is_left_to_it(store, tmp_path) -> None:
    config = tiny_study.RUNS["laptop"][0]
    folder = tmp_path / "scratch" / "tiny" / "laptop"
    folder.mkdir(parents=True)
    with (
        FileLock(folder / f"{run_key('tiny', config)}.lock"),
        pytest.raises(SweepError, match=r"1 of 2 runs failed.*\n.*another process is training this run"),
    ):
        sweep(STUDY, "laptop")
    sweep(STUDY, "laptop")
    assert len(store.load("tiny", "laptop")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "jobs: expected at least 1, got 0"),
        ({"only": ["nothing"]}, "begins with nothing; there are fop, momentum"),
        ({"cluster": "local:none"}, "cluster: expected local:N or an address"),
        ({"cluster": "local:0"}, "cluster: expected local:N or an address"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(STUDY, "smoke", **options)


def test_a_chapter_gets_live_and_recorded_runs(store) -> None:
    with pytest.raises(FileNotFoundError, match=r"no recorded runs of tiny .* fop run tiny --profile laptop"):
        recorded("tiny")
    assert len(live("tiny")) == 5
    assert not Path(store.root).exists()  # smoke runs are not kept
    assert len(live("tiny", "laptop")) == len(recorded("tiny")) == 2
    sweep(STUDY, "paper")
    assert {record.facts["profile"] for record in recorded("tiny")} == {"paper"}
    assert {record.facts["profile"] for record in recorded("tiny", "laptop")} == {"laptop"}


def test_names(monkeypatch) -> None:
    with pytest.raises(ValueError, match="study: expected one of tiny, got 'nothing'"):
        studies.find("nothing")
    assert chosen_profile() == "smoke"
    monkeypatch.setenv("FOP_PROFILE", "paper")
    assert chosen_profile() == "paper"
    assert chosen_profile("laptop") == "laptop"
    monkeypatch.setenv("FOP_PROFILE", "papers")
    with pytest.raises(ValueError, match="FOP_PROFILE: expected one of smoke, laptop, paper, got 'papers'"):
        chosen_profile()
