"""The epoch under way: the sums of its steps, its evaluations, its time."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch

from medtrain.run import Run
from medtrain.runtime.distributed import World
from medtrain.training.engine import Engine
from medtrain.training.totals import Totals


class Epoch:
    """The epoch under way.

    done: its optimizer steps so far. evaluations: the records of those within the epoch.
    """

    def __init__(self, run: Run, engine: Engine) -> None:
        self.run, self.engine = run, engine
        self.clear()

    def clear(self) -> None:
        """Nothing of the epoch is done yet."""
        self.totals = Totals()
        self.evaluations: list[dict[str, Any]] = []
        self.done = 0

    def begin(self, steps: int, samples_per_step: int) -> None:
        """Show hooks where the epoch of so many steps stands, and start its clock."""
        self.run.steps_per_epoch = steps
        self.run.progress = {
            "stage": "training",
            "done": self.done,
            "totals": self.totals,
            "samples_per_step": samples_per_step,
            "waiting_seconds": 0.0,
            "evaluation_seconds": 0.0,
        }
        device = self.engine.world.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.first_step, self.started = self.done, time.perf_counter()

    def record(self) -> dict[str, Any]:
        """What the steps came to: the training half of the history's record."""
        run, engine, totals = self.run, self.engine, self.totals
        record: dict[str, Any] = {"epoch": run.epoch, "step": run.step}
        record |= {f"train/{name}": value for name, value in totals.means(engine.world).items()}
        if engine.skip_after is not None:
            record["train/skipped_steps"] = totals.skipped
        groups = engine.optimizer.param_groups
        # Those of the last step: by now the schedule may have moved on.
        rates = [float(rate) for rate in totals.rates or [group["lr"] for group in groups]]
        record["learning_rate"] = max(rates)
        if len(rates) > 1:
            names = [str(group.get("name", number)) for number, group in enumerate(groups)]
            record |= {f"learning_rate_{name}": rate for name, rate in zip(names, rates, strict=True)}
        if self.evaluations:
            record["evaluations"] = list(self.evaluations)
        return record

    def timing(self, trained: float, samples: int) -> dict[str, Any]:
        """Seconds and samples per second. trained: when the last step was done. samples: of a whole epoch."""
        progress = self.run.progress
        training = trained - self.started - progress["evaluation_seconds"]
        evaluation = time.perf_counter() - trained + progress["evaluation_seconds"]
        seen = min((self.done - self.first_step) * progress["samples_per_step"], samples)
        return {
            "epoch": self.run.epoch,
            "training_seconds": training,
            "waiting_seconds": progress["waiting_seconds"],
            "evaluation_seconds": evaluation,
            **peak_memory(self.engine.world.device),
            "samples_per_second": seen / training if training else 0.0,
        }


class SharedTotals:
    """The epoch's totals as a part of a checkpoint: the sums over all processes, None between two epochs."""

    def __init__(self, epoch: Epoch, world: World) -> None:
        self.epoch, self.world = epoch, world

    def state_dict(self) -> dict[str, Any] | None:
        totals = self.epoch.totals
        return totals.shared(self.world).state_dict() if totals.steps else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch.totals = Totals.from_state(state, self.world)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes: the most this process ever held, and the most tensors held on its GPU since the epoch began."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peaks = {"peak_rss_bytes": resident * (1 if sys.platform == "darwin" else 1024)}
    if device.type == "cuda":
        peaks["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return peaks
