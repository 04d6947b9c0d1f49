"""`python -m tests.benchmarks`: measure everything, and write `book/results/benchmarks/cost.json`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fop_torch.studies import cost

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "book" / "results" / "benchmarks" / "cost.json"
PARTS = ROOT / "_build" / "benchmarks"
#: Each in a process of its own: what one compiles or imports does not touch the others.
SECTIONS = ("steps", "training", "scaling", "peers")
PACKAGES = (
    "torch", "torchvision", "heavyball", "pytorch_optimizer", "gradient-descent-the-ultimate-optimizer",
)  # fmt: skip


def processor() -> str:
    """Model of the processor."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.M) if info.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def about() -> dict[str, Any]:
    """Device, versions, date, code."""
    return {
        "device": "cpu", "processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "clock": "processor time" if torch.get_num_threads() == 1 else "wall time",
        "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "code": cost.digest(),
    }  # fmt: skip


def measure(section: str, quick: bool) -> dict[str, Any]:
    """Run one section in a process of its own and keep what it found, in case a later one fails."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks", "--rows-of", section] + ["--quick"] * quick
    made_on, start = about(), time.time()
    found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    minutes = round((time.time() - start) / 60, 1)
    part = {"about": made_on, "quick": quick, "minutes": minutes, "rows": json.loads(found.stdout.splitlines()[-1])}
    PARTS.mkdir(parents=True, exist_ok=True)
    (PARTS / f"{section}.json").write_text(json.dumps(part), encoding="utf-8")
    print(f"{section}: {minutes} minutes", flush=True)
    return part


def main() -> None:
    """Run the sections, one after the other, and merge their rows."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="measure this section; take others as found")
    parser.add_argument("--quick", action="store_true", help="few repetitions, to see whether it runs")
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--rows-of", choices=SECTIONS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.rows_of:
        section = importlib.import_module(f"tests.benchmarks.{chosen.rows_of}")
        print(json.dumps(list(section.run(chosen.quick))))
        return
    for section in chosen.only or SECTIONS:
        measure(section, chosen.quick)
    missing = [section for section in SECTIONS if not (PARTS / f"{section}.json").exists()]
    if missing:
        sys.exit(f"no record is written: {', '.join(missing)} not measured yet")
    parts = {section: json.loads((PARTS / f"{section}.json").read_text(encoding="utf-8")) for section in SECTIONS}
    origins = [{**part["about"], "date": "", "quick": part["quick"]} for part in parts.values()]
    if any(origin != origins[0] for origin in origins):
        sys.exit("no record is written: the sections were measured with other code, packages or threads; measure all")
    record = {
        "about": parts[SECTIONS[-1]]["about"], "quick": origins[0]["quick"],
        "minutes": {section: part["minutes"] for section, part in parts.items()},
        "rows": [row for part in parts.values() for row in part["rows"]],
    }  # fmt: skip
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(rounded(json.dumps(record, indent=1)) + "\n", encoding="utf-8")
    print(chosen.out)


def rounded(text: str) -> str:
    """Five digits of every number: more were noise."""
    return re.sub(r"-?\d+\.\d{5,}(?:e[+-]?\d+)?|-?\d\.\d+e[+-]?\d+", lambda number: f"{float(number[0]):.5g}", text)


if __name__ == "__main__":
    main()
