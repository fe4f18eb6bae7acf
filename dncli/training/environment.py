"""What a result depends on besides the settings: versions, devices, the commit, and who started the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("dndetr", "torch", "torchvision", "numpy", "pycocotools", "scipy", "pillow")


def environment() -> dict[str, Any]:
    """As plain values, for the env.json of a run."""
    return {
        "command": sys.argv,
        "launch": launch(),
        "versions": {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git_commit": git_commit(Path(__file__).resolve().parents[2]),
    }


def launch() -> str | None:
    """Which torchrun started this process: its --rdzv-id where it has one of its own, else the process that it is."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name != "none":
        return name
    try:
        since = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]  # its start, in clock ticks
    except (OSError, IndexError):
        since = "unknown"
    return f"process {os.getppid()} since {since}"


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit(root: Path) -> str | None:
    """The commit of a source checkout, None where the code was installed."""
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None
