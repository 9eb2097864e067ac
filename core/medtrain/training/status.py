"""The status of a split, for whoever watches its folder."""

from __future__ import annotations

import time
from typing import Any

from medtrain.protocols.ranking import Ranking
from medtrain.run import Run
from medtrain.rundir.directory import SplitFolder

STATUS_SECONDS = 1.0


class Status:
    """Writes where the run stands. best: the monitored value so far."""

    def __init__(self, run: Run, folder: SplitFolder, best: Ranking) -> None:
        self.run, self.folder, self.best = run, folder, best
        self._written_at = 0.0

    def write(self, status: str, **facts: Any) -> None:
        """Write it, on the main process."""
        self._written_at = time.monotonic()
        run, best = self.run, self.best
        if run.is_main_process:
            self.folder.write_status(
                status,
                epoch=run.epoch,
                num_epochs=run.num_epochs,
                step=run.step,
                best={"name": run.monitor, "value": best.best, "epoch": best.epoch, "step": best.step},
                **facts,
            )

    def refresh(self) -> None:
        """Say that the run goes on; a run of very short epochs does not write it at each."""
        if time.monotonic() - self._written_at > STATUS_SECONDS:
            self.write("running")
