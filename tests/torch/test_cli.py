"""The command line: what it does, what it says, and how it fails: in one line, with an exit code."""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import torch
from click.testing import CliRunner, Result

from fop_torch import cli, data, plan, results
from fop_torch.results import Store, run_key
from fop_torch.sweep import SweepError, steps_done, sweep
from fop_torch.training import Session
from tests.torch import tiny_study
from tests.torch.tiny_study import Config

COMMANDS = ("doctor", "list", "plan", "report", "run", "status")
ROWS = [(0, "", "accuracy", 50.0)]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_study.register(monkeypatch, tmp_path)


def fop(*words: str) -> Result:
    found = CliRunner().invoke(cli.main, words, prog_name="fop")
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    assert "Traceback (most" not in found.output
    return found


def record(config: Config, profile: str = "smoke", status: str = "finished", **facts: object) -> None:
    """A run as a sweep would have recorded it."""
    known = {
        "seconds": 90.0, "ended": "2020-01-02T03:04:05Z", "device": "abacus", "code_digest": tiny_study.STUDY.code(),
        "data": {"name": "digits", "source": "a drawer", "digest": "0123456789abcdef"},
    }  # fmt: skip
    Store(results.store().root).save("tiny", profile, config.label, config, status, known | facts, ROWS)


# ---------------------------------------------------------------------------------------
# Help and usage


def test_help_and_list_wait_for_torch_and_not_for_what_takes_longer() -> None:
    code = """
import sys
from fop_torch import cli
slow = {"torch._dynamo", "torchvision", "lightning_fabric"}
print(slow & {*sys.modules}, "pandas" in sys.modules)
from fop_torch.studies import MODULES, find
for name in MODULES:
    find(name)
print(slow & {*sys.modules})
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set() False\nset()\n"


def test_every_command_is_explained() -> None:
    assert tuple(sorted(cli.main.commands)) == COMMANDS
    listed = fop("--help").output
    for name in COMMANDS:
        line = next(line for line in listed.splitlines() if line.startswith(f"  {name}  "))
        assert line.endswith("."), "cut off"
        assert "..." not in line
        told = fop(name, "--help").output
        assert f"  fop {name}" in told or f"Example: fop {name}" in told
        for param in cli.main.commands[name].params:
            if isinstance(param, click.Option):
                assert param.help, f"{name} {param.name}"


def test_help_names_what_there_is() -> None:
    told = " ".join(fop("plan", "--help").output.split())
    assert ", ".join(list(plan.DEVICES)[:-1]) + f" or {list(plan.DEVICES)[-1]}" in told
    assert f"[{'|'.join(plan.PRECISIONS)}]" in told
    assert "a checkpoint every minute" in " ".join(fop("run", "--help").output.split())
    assert inspect.signature(Session).parameters["every"].default == 60.0


BAD_USAGE = {
    "run imagenet": "study: expected one of tiny, got 'imagenet'",
    "status imagenet": "study: expected one of tiny, got 'imagenet'",
    "run tiny --profile papr": "profile: expected one of smoke, laptop, paper, got 'papr'",
    "report tiny --profile papr": "profile: expected one of smoke, laptop, paper, got 'papr'",
    "plan tiny --device abacus": "device: expected one of h200, h100,",
    "plan tiny --precision fp8": "'fp8' is not one of 'fp32', 'tf32', 'bf16'",
    "run tiny --jobs 0": "0 is not in the range x>=1",
    "run": "Missing argument 'STUDY'",
    "race": "No such command 'race'",
}


@pytest.mark.parametrize("words", BAD_USAGE)
def test_bad_usage(words: str) -> None:
    found = fop(*words.split())
    assert found.exit_code == 2
    assert [line for line in found.stderr.splitlines() if line.startswith("Error: ") and BAD_USAGE[words] in line]


def test_a_bad_profile_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOP_PROFILE", "papr")
    found = fop("run", "tiny")
    assert found.exit_code == 2
    assert "FOP_PROFILE: expected one of smoke, laptop, paper, got 'papr'" in found.stderr


def test_the_optimizer_alone_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that a plain installation lacks: click before anything can be said with it, others later."""
    monkeypatch.setitem(sys.modules, "psutil", None)  # type: ignore[arg-type]
    found = fop("doctor")
    assert (found.exit_code, found.stderr) == (1, f"Error: {cli.NEEDS.format('psutil')}\n")
    monkeypatch.setitem(sys.modules, "click", None)  # type: ignore[arg-type]
    spec = importlib.util.spec_from_file_location("cli_without_click", cli.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(SystemExit, match=re.escape(cli.NEEDS.format("click"))):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# ---------------------------------------------------------------------------------------
# run


def test_run_records_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "tiny" / "smoke"
    first = fop("run", "tiny")
    assert first.exit_code == 0, first.output
    # The fifth can be named only when others are recorded.
    assert first.stdout == f"5 of 5 runs of tiny, smoke, are recorded in {folder}; 5 run now\n"
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(kept) == 10
    again = fop("run", "tiny", "--profile", "smoke")
    assert again.stdout == f"5 of 5 runs of tiny, smoke, are recorded in {folder}; there was nothing to do\n"
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept


def test_run_takes_the_profile_of_the_environment_and_some_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOP_PROFILE", "laptop")
    assert fop("run", "tiny", "--only", "fop-s1").stdout.startswith(
        "1 of at least 2 runs of tiny, laptop, are recorded"
    )
    path = next(results.store().folder("tiny", "laptop").glob("fop-s1-*.json"))
    before = path.stat().st_ino
    assert "nothing to do" in fop("run", "tiny", "--only", "fop-s1").stdout
    assert path.stat().st_ino == before
    assert "; 1 run now" in fop("run", "tiny", "--only", "fop-s1", "--again").stdout
    assert path.stat().st_ino != before


def test_run_passes_on_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def sweep(study: object, profile: str, **options: object) -> list:
        asked.update(options, profile=profile)
        return []

    monkeypatch.setattr("fop_torch.sweep.sweep", sweep)
    words = "--profile paper --jobs 3 --cluster local:2 --device cpu --only fop --only follower --again --quiet "
    words += "--precision bf16-mixed"
    assert fop("run", "tiny", *words.split()).exit_code == 0
    assert asked == {
        "profile": "paper", "jobs": 3, "cluster": "local:2", "device": "cpu", "only": ("fop", "follower"),
        "again": True, "quiet": True, "precision": "bf16-mixed",
    }  # fmt: skip


def test_only_without_such_a_run() -> None:
    found = fop("run", "tiny", "--only", "adam")
    assert found.exit_code == 1
    assert found.stderr.startswith("Error: only: no run of tiny, smoke begins with adam")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_gpu() -> None:
    found = fop("run", "tiny", "--device", "cuda")
    assert found.exit_code == 1
    assert found.stderr == (
        "Error: device: PyTorch finds no GPU here; leave out --device cuda, and see what `fop doctor` says\n"
    )


def test_runs_that_fail_are_named_and_the_others_are_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What several died of is told once."""
    broken = [Config(fail="raise", seed=seed) for seed in range(2)]
    monkeypatch.setitem(tiny_study.RUNS, "paper", [*broken, Config()])
    found = fop("run", "tiny", "--profile", "paper", "--quiet")
    log = tmp_path / "scratch" / "tiny" / "paper" / "errors.log"
    key = run_key("tiny", broken[0])
    assert found.exit_code == 1
    assert found.stderr.splitlines() == [
        "Error: 2 of 3 runs failed; the others are recorded.",
        f"2 runs, such as momentum-raise-s0 ({key}): RuntimeError: broken on purpose",
        f"Tracebacks: {log}",
    ]
    assert log.read_text(encoding="utf-8").count("in batch\n") == 1
    assert [each.key for each in results.store().load("tiny", "paper")] == [run_key("tiny", Config())]


def test_missing_data_end_the_sweep_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = []

    def train(config: Config, *_: object) -> None:
        tried.append(config)
        data.load("mnist")

    monkeypatch.setattr(tiny_study, "STUDY", replace(tiny_study.STUDY, train=train))
    monkeypatch.setenv("FOP_OFFLINE", "1")
    monkeypatch.setenv("FOP_CACHE", str(tmp_path))
    monkeypatch.delenv("FOP_DATA", raising=False)
    found = fop("run", "tiny", "--quiet")
    assert len(tried) == 1
    assert found.exit_code == 1
    assert re.fullmatch(r"Error: mnist: no folder mnist in FOP_DATA \(not set\), .*Remedy: .*\n", found.stderr)


def test_without_a_terminal_each_run_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny_study.RUNS, "paper", [Config(fail="raise"), Config()])
    lines = [re.sub(r"\d+ s;", "N s;", line) for line in fop("run", "tiny").stderr.splitlines()]
    assert lines == [
        "tiny smoke: starting 4 runs",
        "momentum-s0: N s; 1 of 4 runs",
        "momentum-s1: N s; 2 of 4 runs",
        "fop-s0: N s; 3 of 4 runs",
        "fop-s1: N s; 4 of 4 runs",
        "tiny smoke: starting 1 runs",
        "follower-s0: N s; 5 of 5 runs",
    ]
    assert "momentum-raise-s0: failed; 1 of 2 runs" in fop("run", "tiny", "--profile", "paper").stderr
    assert fop("run", "tiny", "--again", "--quiet").stderr == ""


def test_it_is_said_where_a_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is said is what is done; of other code, or broken, a checkpoint is not gone on from, and nothing is said."""
    with pytest.raises(SweepError, match="2 of 2 runs failed"):
        sweep(tiny_study.STUDY, "laptop", quiet=True, every=0.0, stop_after=20)
    checkpoint = tmp_path / "scratch" / "tiny" / "laptop" / f"{run_key('tiny', Config('FOP', 0, 60))}.ckpt"
    resumed: list[int] = []
    resume = Session.resume
    monkeypatch.setattr(Session, "resume", lambda *given: resumed.append(resume(*given)) or resumed[-1])
    code = tiny_study.STUDY.code()
    assert (steps_done(checkpoint, code), steps_done(checkpoint, "other"), steps_done(tmp_path, code)) == (20, 0, 0)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    told = fop("run", "tiny", "--profile", "laptop")
    assert told.exit_code == 1
    assert told.stderr.splitlines()[:2] == [
        "tiny laptop: starting 2 runs", "fop-s1: goes on after step 20 of 60",
    ]  # fmt: skip
    assert f"{checkpoint}: the checkpoint cannot be read" in told.stderr
    assert resumed == [20]


def test_ctrl_c_and_the_same_command_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(tiny_study.RUNS, "paper", [Config(fail="interrupt")])
    # A shell lets its background jobs, such as these tests may be, ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = fop("run", "tiny", "--profile", "paper", "--quiet")
    finally:
        signal.signal(signal.SIGINT, before)
    assert found.exit_code == 130
    scratch = tmp_path / "scratch" / "tiny" / "paper"
    assert found.stderr.strip() == f"Stopped. The same command goes on; checkpoints are in {scratch}"
    assert results.store().load("tiny", "paper") == []
    assert fop("run", "tiny", "--profile", "paper").stdout.startswith("1 of 1 runs of tiny, paper, are recorded")


# ---------------------------------------------------------------------------------------
# list, status


def test_list() -> None:
    record(Config("FOP", 0, iterations=60), "laptop")
    assert fop("list").stdout.splitlines() == [
        "tiny: Two layers on digits",
        "  judges nothing of the paper; data: none",
        "  smoke: 0 of at least 4 runs recorded; against the paper: everything",
        "  laptop: 1 of at least 2 runs recorded; against the paper: most",
        "  paper: 0 of at least 2 runs recorded; against the paper: some",
    ]


def test_status_of_what_is_recorded() -> None:
    record(Config())
    record(Config(seed=1), status="diverged", ended="2021-01-02T03:04:05Z")
    record(Config(seed=77), device="slide rule", code_digest="another")
    told = fop("status", "tiny")
    assert told.exit_code == 0
    assert told.stdout.splitlines() == [
        "tiny, smoke: 2 of at least 5 runs recorded, 1 of other settings, 1 diverged, 4.5 min in all, "
        "until 2021-01-02T03:04:05Z",
        "  device: abacus (2 runs); slide rule (1 runs)",
        "  data: digits, a drawer, digest 0123456789abcdef",
        "  code: 1 runs by an earlier state of the code; `git log` shows what has changed since",
        "tiny, laptop: 0 of at least 2 runs recorded",
        "tiny, paper: 0 of at least 2 runs recorded",
    ]
    assert told.stdout == fop("status").stdout


def test_status_of_what_the_engine_recorded() -> None:
    """The records of a real run hold what the status asks for."""
    assert fop("run", "tiny", "--profile", "paper", "--only", "momentum").exit_code == 0
    lines = fop("status").stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("tiny, paper: 1 of at least 2 runs recorded, "))
    assert lines[start + 1].startswith("  device: ")
    assert lines[start + 2 :] == [
        "  data: digits, scikit-learn, digest 0123456789abcdef",
        "  code: as it stands here",
    ]


def test_status_of_what_is_running(tmp_path: Path) -> None:
    folder = tmp_path / "scratch" / "tiny" / "smoke"
    folder.mkdir(parents=True)
    for config, beat in ((Config(), 1234), (Config("FOP"), 20)):
        (folder / f"{run_key('tiny', config)}.progress").write_text(json.dumps([beat, 30_000]), encoding="utf-8")
    hour = time.time() - 3600
    os.utime(folder / f"{run_key('tiny', Config('FOP'))}.progress", (hour, hour))
    (folder / "beaten-half-way.progress").write_text("[12", encoding="utf-8")
    lines = fop("status").stdout.splitlines()
    assert lines[0] == "tiny, smoke: 0 of at least 4 runs recorded"
    stopped, running = sorted(lines[1:3])
    assert stopped == "  fop-s0: step 20 of 30,000, stopped 1 h ago; fop run goes on with it"
    assert re.fullmatch(r"  momentum-s0: step 1,234 of 30,000, last sign [0-9.]+ s ago", running)
    assert lines[3].startswith("tiny, laptop")


@pytest.mark.parametrize("words", ["status", "list", "run tiny"])
def test_a_broken_record_is_named(words: str) -> None:
    record(Config())
    path = next(results.store().folder("tiny", "smoke").glob("*.json"))
    path.write_text("{", encoding="utf-8")
    found = fop(*words.split())
    assert found.exit_code == 1
    assert found.stderr.startswith(f"Error: {path}: not a record of a run")
    assert len(found.stderr.splitlines()) == 1


# ---------------------------------------------------------------------------------------
# report


def summary(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(records: list) -> str:
        return " ".join(sorted(record.path.parent.name + "/" + record.path.stem[:-13] for record in records))

    monkeypatch.setitem(sys.modules, "fop_torch.studies.tiny", SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "fop_torch.studies.tiny.summary", SimpleNamespace(report=told))  # type: ignore[arg-type]


def test_report_takes_the_best_profile_or_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    summary(monkeypatch)
    record(Config("FOP", 0, iterations=60), "laptop")
    assert fop("report", "tiny").stdout == "laptop/fop-s0\n"
    record(Config())  # smoke, which laptop outranks
    assert fop("report", "tiny").stdout == "laptop/fop-s0\n"
    record(Config(iterations=300), "paper")
    assert fop("report", "tiny").stdout == "paper/momentum-s0\n"
    assert fop("report", "tiny", "--profile", "laptop").stdout == "laptop/fop-s0\n"


def test_report_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    summary(monkeypatch)
    found = fop("report", "tiny")
    assert found.exit_code == 1
    assert re.fullmatch(r"Error: no recorded runs of tiny under .*fop run tiny --profile laptop\n", found.stderr)
    assert fop("report", "tiny", "--profile", "smoke").stderr.endswith(" fop run tiny --profile smoke\n")


def test_report_of_smoke_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    summary(monkeypatch)
    record(Config())
    lines = fop("report", "tiny").stdout.splitlines()
    assert lines == ["Only smoke is recorded, which shows that everything runs and no more.", "", "smoke/momentum-s0"]
    assert fop("report", "tiny", "--profile", "laptop").exit_code == 1


def test_a_study_without_a_summary() -> None:
    record(Config(), "laptop")
    found = fop("report", "tiny")
    assert (found.exit_code, found.stderr) == (1, "Error: study: tiny has no summary to report\n")


# ---------------------------------------------------------------------------------------
# doctor, plan


@pytest.mark.parametrize("load", [0.7, 99.0])
def test_doctor(load: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(data, "where", lambda name: f"under the bed, {name}")
    costs = []
    original = plan.costs_here

    def noted(*args: object, budget: float) -> dict[str, float]:
        assert budget <= 25
        costs.append(original(*args, budget=0.5))  # type: ignore[arg-type]
        return costs[0]

    monkeypatch.setattr(plan, "costs_here", noted)
    found = fop("doctor")
    assert found.exit_code == 0
    for words in (
        *(f"{name}: under the bed, {name}" for name in data.NAMES),
        f"torch {torch.__version__.split('+')[0]}",
        f"results   {tmp_path / 'results'}, ",
        f"scratch   {tmp_path / 'scratch'}, ",
    ):
        assert words in found.stdout
    assert list(costs[0]) == ["smoke", "laptop", "paper"]
    for profile, seconds in costs[0].items():
        assert math.isfinite(seconds)
        assert seconds > 0
        count = len(tiny_study.runs(profile))
        told = f"tiny, {profile}: {count} runs, about {plan.duration(seconds)} one after the other"
        assert told in found.stdout
    free = [float(number) for number in re.findall(r"([0-9.]+) GB free", found.stdout)]
    assert len(free) == 2
    assert all(0 < number < 1e7 for number in free)
    assert not (tmp_path / "results").exists()  # it looks and makes nothing
    assert ", and took" not in found.stdout
    for config in (Config(), Config(seed=1)):
        record(config)
    assert " one after the other; 2 are recorded, and took 3 min\n" in fop("doctor").stdout
    assert ("This machine is busy: 99 processes want its" in found.stdout) == (load > 1)


def test_plan() -> None:
    found = fop("plan", "tiny", "--profile", "paper", "--device", "a100", "--precision", "bf16")
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    assert lines[0].startswith("tiny, paper, as far as its runs can be named now: 2 runs take about ")
    assert "A100 SXM, 80 GB in bf16" in lines[0]
    assert [line.split()[0] for line in lines[3:5]] == ["momentum", "fop"]
