"""`fop`: the studies from the command line. What a command needs beside PyTorch is imported when it runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

#: Said where the optimizer alone is installed.
NEEDS = (
    "the command fop needs the packages of the experiments, and {} is missing. In the checkout: "
    "pip install -c constraints.txt '.[studies]'"
)
try:
    import click
except ModuleNotFoundError as error:
    raise SystemExit(NEEDS.format(error.name)) from error

if TYPE_CHECKING:
    from fop_torch.results import Record
    from fop_torch.studies.study import Study

#: Seconds after which a run without a heartbeat counts as stopped; it beats twice a second.
SILENT = 60.0


class _Ended(KeyboardInterrupt):
    """SIGTERM: to be answered as Ctrl-C is, so that the workers end too."""


def _end(*_: Any) -> None:
    raise _Ended


class _Commands(click.Group):
    """Says errors that a user can mend in their own words, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            raise click.ClickException(NEEDS.format(error.name)) from error
        except RuntimeError as error:
            from fop_torch.results import ResultsError

            if isinstance(error, ResultsError):
                raise click.ClickException(str(error)) from error
            raise


def _checked(check: Callable[[Any], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A click callback that reports a ValueError of `check` as bad usage."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            return check(value)
        except ValueError as error:
            raise click.UsageError(str(error), ctx) from error

    return callback


def _study(name: str | None) -> Study | None:
    from fop_torch.studies import find

    return None if name is None else find(name)


def _profile(name: str | None) -> str:
    from fop_torch.studies.study import chosen_profile

    return chosen_profile(name)


def _device(name: str) -> str:
    from fop_torch.plan import known_device

    known_device(name)
    return name


STUDY = click.argument("study", callback=_checked(_study))
PROFILE = click.option(
    "--profile",
    metavar="NAME",
    callback=_checked(_profile),
    help="smoke (seconds), laptop (what two cores can do; see fop doctor) or paper (the paper's settings). "
    "When left out: FOP_PROFILE, else smoke.",
)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fop", message="%(version)s")
def main() -> None:
    """Run the experiments of the book on First-Order Preconditioning, and see what they gave.

    \b
    Examples:
      fop list                                     which studies there are
      fop doctor                                   what is here, and what they would cost here
      fop run mnist --profile laptop --jobs 2      run one; give the same command again to go on
      fop status                                   how far they are
      fop report mnist                             what came out

    \b
    Environment:
      FOP_DATA       folder of the data sets        FOP_PROFILE    the profile, else smoke
      FOP_CACHE      folder of downloads            FOP_OFFLINE    if set: download nothing
      FOP_RESULTS    folder of the results          FOP_SCRATCH    folder of checkpoints
    """  # noqa: D301 (click's mark, not an escape)


@main.command("list")
def list_() -> None:
    """List the studies, what they judge, and what each profile reduces.

    Example: fop list
    """
    from fop_torch.studies import MODULES, find

    for name in MODULES:
        study = find(name)
        click.echo(f"{name}: {study.title}\n  judges {study.shows}; data: {', '.join(study.data) or 'none'}")
        for profile, reduces in study.profiles.items():
            click.echo(f"  {profile}: {_done(*_runs(study, profile))} recorded; against the paper: {reduces}")


@main.command(short_help="Run what is not recorded yet of a study, or go on with it.")
@STUDY
@PROFILE
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes on this machine.")
@click.option("--cluster", default="", metavar="ADDRESS", help="A Dask scheduler's tcp://…, or local:N for N workers.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: a GPU if there is one."
)
@click.option(
    "--precision",
    type=click.Choice(["32-true", "bf16-mixed"]),
    default="32-true",
    show_default=True,
    help="Of forward and backward.",
)
@click.option("--only", multiple=True, metavar="LABEL", help="Only runs whose label begins so; may be given often.")
@click.option("--again", is_flag=True, help="Run also what is recorded, and replace it.")
@click.option("--quiet", is_flag=True, help="Don't say how far it is.")
def run(
    study: Study, profile: str, jobs: int, cluster: str, device: str, precision: str, only: Sequence[str],
    again: bool, quiet: bool,
) -> None:  # fmt: skip
    """Run what is not recorded yet of a study; the same command goes on where it was stopped.

    A run writes a checkpoint every minute: no more than that is lost.

    \b
    Examples:
      fop run mnist
      fop run mnist --profile laptop --jobs 2
      fop run mnist --profile paper --only fop-k25 --device cuda
      fop run mnist --profile paper --cluster tcp://scheduler:8786
      fop run imagenet --profile paper --precision bf16-mixed
    """  # noqa: D301
    import torch

    from fop_torch import results
    from fop_torch.sweep import SweepError, sweep

    if device == "cuda" and not cluster and not torch.cuda.is_available():
        raise ValueError("device: PyTorch finds no GPU here; leave out --device cuda, and see what `fop doctor` says")
    scratch = results.scratch() / study.name / profile
    before = signal.signal(signal.SIGTERM, _end)
    try:
        outcomes = sweep(
            study, profile, jobs=jobs, cluster=cluster, device=device, precision=precision, only=only, again=again,
            quiet=quiet,
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        click.echo(f"\nStopped. The same command goes on; checkpoints are in {scratch}", err=True)
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, _Ended) else signal.SIGINT))
    except SweepError as error:
        raise click.ClickException(_told(error, scratch / "errors.log")) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    done = _done(*_runs(study, profile))
    new = f"{len(outcomes)} run now" if outcomes else "there was nothing to do"
    click.echo(
        f"{done} of {study.name}, {profile}, are recorded in {results.store().folder(study.name, profile)}; {new}"
    )


def _told(error: Exception, log: Path) -> str:
    """An error of a sweep without its tracebacks, which go into a file."""
    traces = getattr(error, "__notes__", [])
    if not traces:
        return str(error)
    log.write_text("\n".join(traces), encoding="utf-8")
    return f"{error}\nTracebacks: {log}"


@main.command()
@click.argument("study", required=False, callback=_checked(_study))
def status(study: Study | None) -> None:
    """Show what is recorded and what is running, of one study or of all.

    \b
    Examples:
      fop status
      fop status mnist
    """  # noqa: D301
    from fop_torch.results import scratch
    from fop_torch.studies import MODULES, find

    for each in [study] if study else [find(name) for name in MODULES]:
        code = each.code()
        for profile in each.profiles:
            named, recorded = _runs(each, profile)
            click.echo(f"{each.name}, {profile}: {_summary(named, recorded, code)}")
            for line in _in_progress(scratch() / each.name / profile, named):
                click.echo(f"  {line}")


def _done(named: dict[str, Any], recorded: Sequence[Record]) -> str:
    """How many runs are recorded, of how many; further ones may be named when all of these are there."""
    done = len(named.keys() & {record.key for record in recorded})
    return f"{done} of {'at least ' if done < len(named) else ''}{len(named)} runs"


def _summary(named: dict[str, Any], recorded: Sequence[Record], code: str) -> str:
    """What is known of the records of one profile, in a paragraph."""
    from fop_torch.plan import duration

    ours = [record for record in recorded if record.key in named]
    told = [f"{_done(named, recorded)} recorded"]
    if not recorded:
        return told[0]
    if len(recorded) > len(ours):
        told.append(f"{len(recorded) - len(ours)} of other settings")
    if gone := sum(record.status == "diverged" for record in recorded):
        told.append(f"{gone} diverged")
    facts = [record.facts for record in recorded]
    told.append(f"{duration(sum(each['seconds'] for each in facts))} in all, until {max(f['ended'] for f in facts)}")
    lines = [", ".join(told)]
    lines.append(f"device: {_counted(each['device'] for each in facts)}")
    sources = (each["data"] for each in facts if "data" in each)
    lines.append(f"data: {_counted('{name}, {source}, digest {digest}'.format(**each) for each in sources)}")
    other = sum(each["code_digest"] != code for each in facts)
    earlier = f"{other} runs by an earlier state of the code; `git log` shows what has changed since"
    lines.append(f"code: {earlier if other else 'as it stands here'}")
    return "\n  ".join(lines)


def _counted(values: Any) -> str:
    """Different values, with how often each occurs where there are several."""
    found = Counter(values)
    return "; ".join(f"{value} ({n} runs)" if len(found) > 1 else value for value, n in found.items()) or "unknown"


def _in_progress(folder: Path, named: dict[str, Any]) -> list[str]:
    """A line for each run that has begun and is not recorded."""
    lines = []
    for path in sorted(folder.glob("*.progress")):
        try:
            done, of = json.loads(path.read_text(encoding="utf-8"))
            silent = time.time() - path.stat().st_mtime
        except (OSError, ValueError):  # it ended, or beats, just now
            continue
        label = named[path.stem].label if path.stem in named else path.stem
        ago = f"{_ago(silent)} ago"
        # What was killed a moment ago looks as what is running does.
        state = f"last sign {ago}" if silent < SILENT else f"stopped {ago}; fop run goes on with it"
        lines.append(f"{label}: step {done:,} of {of:,}, {state}")
    return lines


def _ago(seconds: float) -> str:
    from fop_torch.plan import duration

    return duration(seconds)


@main.command()
@STUDY
@click.option(
    "--profile",
    metavar="NAME",
    callback=_checked(lambda name: name and _profile(name)),
    help="When left out: the best that is recorded, paper before laptop before smoke.",
)
def report(study: Study, profile: str | None) -> None:
    """Print what a study found.

    \b
    Examples:
      fop report mnist
      fop report mnist --profile laptop
    """  # noqa: D301
    from importlib import import_module

    from fop_torch.results import store
    from fop_torch.studies import recorded

    module = f"fop_torch.studies.{study.name}.summary"
    try:
        summary = import_module(module)
    except ModuleNotFoundError as error:
        if not module.startswith(error.name or "?"):
            raise
        raise ValueError(f"study: {study.name} has no summary to report") from error
    try:
        records = recorded(study.name, profile)
    except FileNotFoundError:
        records = [] if profile else store().load(study.name, "smoke")
        if not records:
            raise
        click.echo("Only smoke is recorded, which shows that everything runs and no more.\n")
    click.echo(summary.report(records))


@main.command(short_help="Show device, versions, data, folders, and costs here.")
def doctor() -> None:
    """Show the device, the versions, the data, the folders, and what each study would cost here; takes a minute.

    Example: fop doctor
    """
    import platform
    from importlib import metadata

    import psutil
    import torch

    from fop_torch import data, results
    from fop_torch.plan import costs_here, duration
    from fop_torch.studies import MODULES, find
    from fop_torch.training import PACKAGES, device_name

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else psutil.virtual_memory().total
    click.echo(f"device    {device_name(device)}, {memory / 1e9:.1f} GB; {os.cpu_count()} processors")
    if not cuda:
        click.echo("          no GPU that PyTorch can use")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    click.echo(f"versions  Python {platform.python_version()}, {versions}")
    for name in data.NAMES:
        click.echo(f"data      {name}: {data.where(name)}")
    for name, folder in (("results", results.store().root), ("scratch", results.scratch())):
        click.echo(f"{name:<9} {folder}, {_free(folder) / 1e9:.1f} GB free")
    for study in map(find, MODULES):
        if study.setup is None:
            click.echo(f"cost      {study.name}: not counted, a run is many small trainings")
            continue
        runs = {profile: _runs(study, profile) for profile in study.profiles}
        wanted = {profile: list(named.values()) for profile, (named, _) in runs.items()}
        costs = costs_here(study, wanted, device.type, budget=25 / len(MODULES))
        for profile, configs in wanted.items():
            told = f"{len(configs)} runs, about {duration(costs[profile])} one after the other"
            if recorded := runs[profile][1]:
                took = duration(sum(record.facts["seconds"] for record in recorded))
                told += f"; {len(recorded)} are recorded, and took {took}"
            click.echo(f"cost      {study.name}, {profile}: {told}")
    click.echo(
        "Cost: steps of the optimizer alone, timed just now with one thread: a walker's simulator and the evaluation "
        "come on top; more runs may be named when these are recorded."
    )
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load > processors + 1:  # one process is this one
        click.echo(f"This machine is busy: {load:.0f} processes want its {processors} processors. Idle, it takes less.")


def _free(folder: Path) -> int:
    """Bytes free where a folder is or would be."""
    folder = folder.absolute()
    return shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists())).free


@main.command(short_help="Say what a study would cost on a GPU; none is needed.")
@STUDY
@PROFILE
@click.option(
    "--device",
    default="h100",
    show_default=True,
    metavar="NAME",
    callback=_checked(_device),
    help="h200, h100, a100, l40s, l4 or rtx4090.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of forward and backward.",
)
def plan(study: Study, profile: str, device: str, precision: str) -> None:
    """Say what a study would cost on a GPU, from counted operations; no GPU is needed.

    \b
    Examples:
      fop plan mnist --profile paper --device h100
      fop plan mnist --profile paper --device rtx4090 --precision tf32
    """  # noqa: D301
    from fop_torch.plan import plan as planned

    named, _ = _runs(study, profile)
    told = planned(study, list(named.values()), device, precision)
    click.echo(f"{study.name}, {profile}, as far as its runs can be named now: {told}")


def _runs(study: Study, profile: str) -> tuple[dict[str, Any], list[Record]]:
    """The runs of a profile that can be named now, by their keys; and its records."""
    from fop_torch import results
    from fop_torch.sweep import runs

    records = results.store().load(study.name, profile)
    return runs(study, profile, records), records


if __name__ == "__main__":
    main(prog_name="fop")
