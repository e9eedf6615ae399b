"""Where a run takes place: versions, machine and commit, written beside its results."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

MAIN_PACKAGES = ("fedface", "torch", "flwr", "ray", "numpy", "scikit-learn")
"""The packages that decide a run's figures; reports show their versions first."""


def describe_environment() -> dict[str, Any]:
    """Returns date, Python, machine, git commit and the version of every installed package."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git_commit": git_commit(),
        "main_packages": list(MAIN_PACKAGES),
        "packages": {
            d.metadata["Name"]: d.version
            for d in sorted(distributions(), key=lambda d: str(d.metadata["Name"]).lower())
        },
    }


def git_commit(folder: Path = Path(__file__).parent) -> str | None:
    """Returns the commit of the code, with ``+changes`` when files differ, or None without git."""
    try:
        commit = _git("rev-parse", "HEAD", folder=folder)
        return commit + ("+changes" if _git("status", "--porcelain", folder=folder) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()
