"""The values of an epoch, with the names of the run's history and a few more, for every tracker."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medtrain import Run

MIB = 2**20


def epoch_values(run: Run) -> dict[str, float]:
    """The record of the epoch that just ended, memory and throughput."""
    values = numbers(run.metrics)
    if timing := run.progress.get("timing"):
        values["throughput/samples_per_second"] = timing["samples_per_second"]
    return values | memory(run)


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a history record; undefined values (NaN, None) are left out."""
    found = {name: value for name, value in record.items() if name not in ("epoch", "step")}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def memory(run: Run) -> dict[str, float]:
    """Resident memory of this process and, on a GPU, the peak memory of its tensors; in MiB."""
    values = {"memory/rss_mib": resident_bytes() / MIB}
    if run.device.type == "cuda":
        import torch

        values["memory/cuda_peak_mib"] = torch.cuda.max_memory_allocated(run.device) / MIB
    return values


def resident_bytes() -> int:
    """Resident memory now or, if the system does not provide it, its peak."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
