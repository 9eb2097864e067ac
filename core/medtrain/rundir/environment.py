"""What a run is trained on: versions, device, command, revision of the code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from medtrain._version import __version__
from medtrain.config.sections import RunConfig
from medtrain.errors import ConfigError
from medtrain.rundir.files import sha256


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    return torch.cuda.is_available()


def setup(config: RunConfig, device: torch.device, processes: int) -> dict[str, Any]:
    """What a split is trained on, as its folder records it: device, processes, the table as it was."""
    return {
        "asked": config.computational.device,
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "table_sha256": sha256(table) if (table := config.data.table) is not None and table.is_file() else None,
    }


def check_recorded(recorded: dict[str, Any], config: RunConfig) -> None:
    """Raise ConfigError when a split was trained on a GPU, there is none, and the CPU was not asked for."""
    if recorded.get("device") == "cuda" and config.computational.device != "cpu" and not has_gpu():
        raise ConfigError(
            f"this split was trained on a GPU ({recorded.get('gpu')}), and torch sees none here; to go on on the "
            "CPU say so: ComputationalConfig(gpu=False), or --set computational.device=cpu"
        )


def environment() -> dict[str, Any]:
    """What the run ran on: versions, device, command and the revision of the code around it; no names of machines."""
    import platform
    from importlib.metadata import distributions

    import torch

    packages = {d.name: d.version for d in distributions() if d.name}
    return {
        "medtrain": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": _revision(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def _revision() -> dict[str, Any] | None:
    """The commit of the folder the command was given in, and whether files differ from it; None outside of git."""
    import subprocess

    try:
        asked = [["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"]]
        output = [
            subprocess.run(c, capture_output=True, text=True, timeout=5, check=True).stdout.strip() for c in asked
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": output[0], "changed": bool(output[1])}
