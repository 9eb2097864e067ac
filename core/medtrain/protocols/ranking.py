"""The best values so far: what keeping the best checkpoints and early stopping go by."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple


class CheckpointId(NamedTuple):
    """Which state of the run a checkpoint is: epochs that are complete in it, and optimizer steps."""

    epochs: int
    step: int


class RankedValue(NamedTuple):
    """A value in a ranking, the epoch (from 0) it was found in, and the checkpoint of that state, if any."""

    value: float
    epoch: int
    checkpoint: CheckpointId | None


class Ranking:
    """The best k values of one name so far, best first. NaN never enters, and an equal value ranks behind.

    min_delta: a value ranks before another only when it is better by more than that. since: how many values were
    taken since one entered.
    """

    def __init__(self, mode: Literal["max", "min"], size: int = 1, min_delta: float = 0.0) -> None:
        self.mode, self.size, self.min_delta = mode, size, min_delta
        self.entries: list[RankedValue] = []
        self.since = 0

    @property
    def best(self) -> float | None:
        return self.entries[0].value if self.entries else None

    @property
    def epoch(self) -> int | None:
        return self.entries[0].epoch if self.entries else None

    @property
    def step(self) -> int | None:
        checkpoint = self.entries[0].checkpoint if self.entries else None
        return checkpoint.step if checkpoint else None

    def update(self, value: float, epoch: int, checkpoint: CheckpointId | None = None) -> bool:
        """Take a value; True when it is among the best."""
        better = [entry for entry in self.entries if not self._improves(value, entry.value)]
        if math.isnan(value) or len(better) >= self.size:
            self.since += 1
            return False
        self.entries.insert(len(better), RankedValue(value, epoch, checkpoint))
        del self.entries[self.size :]
        self.since = 0
        return True

    def _improves(self, value: float, held: float) -> bool:
        gain = value - held if self.mode == "max" else held - value
        return gain > self.min_delta

    def state_dict(self) -> dict[str, Any]:
        return {"entries": [[value, epoch, *(checkpoint or ())] for value, epoch, checkpoint in self.entries]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        entries = [(value, epoch, CheckpointId(*rest) if rest else None) for value, epoch, *rest in state["entries"]]
        self.entries = [RankedValue(*entry) for entry in entries[: self.size]]
