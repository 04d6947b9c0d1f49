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


def main() -> None:
    """Run the sections, one after the other, and merge their rows."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="measure this section anew, keep the others")
    parser.add_argument("--quick", action="store_true", help="few repetitions, to see whether it runs")
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--rows-of", choices=SECTIONS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.rows_of:
        section = importlib.import_module(f"tests.benchmarks.{chosen.rows_of}")
        print(json.dumps([{**row, "part": chosen.rows_of} for row in section.run(chosen.quick)]))
        return
    parts = tuple(chosen.only or SECTIONS)
    rows, took, made_on = [], {}, about()
    if chosen.only:
        before = cost.load(chosen.out)
        if before["about"] != {**made_on, "date": before["about"]["date"]}:
            sys.exit("--only: the record is of another machine, or of other code or packages; measure all of it")
        rows = [row for row in before["rows"] if row["part"] not in parts]
        took = before["minutes"]
    for part in parts:
        start = time.time()
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks", "--rows-of", part] + [
            "--quick"
        ] * chosen.quick
        found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        rows += json.loads(found.stdout.splitlines()[-1])
        took[part] = round((time.time() - start) / 60, 1)
        print(f"{part}: {took[part]} minutes", flush=True)
    rows.sort(key=lambda row: SECTIONS.index(row["part"]))
    record = {"about": made_on, "quick": chosen.quick, "minutes": took, "rows": rows}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(rounded(json.dumps(record, indent=1)), encoding="utf-8")
    print(chosen.out)


def rounded(text: str) -> str:
    """Five digits of every number: more were noise."""
    return re.sub(r"-?\d+\.\d{5,}(?:e[+-]?\d+)?|-?\d\.\d+e[+-]?\d+", lambda number: f"{float(number[0]):.5g}", text)


if __name__ == "__main__":
    main()
