"""What a measurement was made on: hardware, versions, commit."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from omniavatar import __version__
from omniavatar.resources import PACKAGE


def command(module: str) -> str:
    """How this program was started, by the module that it is, so that it can be pasted."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Hardware and versions, as JSON values; `device` is what the networks run on."""
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "device_memory_gib": _gib(torch.cuda.get_device_properties(device).total_memory) if on_gpu else None,
        "devices": torch.cuda.device_count(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _host_memory(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "omniavatar": __version__,
        "commit": commit(),
    }


def processor() -> str:
    """The name of the processor, or at least of its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(named), platform.processor() or platform.machine())


def commit() -> str | None:
    """The commit of the checkout that the package lies in, with "-dirty" if files differ from it; None elsewhere."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _host_memory() -> float | None:
    try:
        return _gib(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return None


def _gib(size: int) -> float:
    return round(size / 2**30, 1)
