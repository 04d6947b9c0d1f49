"""Which machine this is: processor, cores, graphics cards, system."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path


@cache
def cpu() -> str:
    """Model of the processor."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.M) if info.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def gpus() -> list[str]:
    """Names of the NVIDIA cards that the driver lists."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    asked = [tool, "--query-gpu=name", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    return [line.strip() for line in said.stdout.splitlines() if line.strip()] if said.returncode == 0 else []


def system() -> str:
    """Operating system and architecture."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        name = f"{platform.system()} {platform.release()}"
    return f"{name}, {platform.machine()}"
