"""Weights & Biases, online or offline: the run's history under one id, written in the background."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

from medtrain_plugins.tracking.tracker import Tracker, tracked, tracking_folder

if TYPE_CHECKING:
    from pathlib import Path

    from medtrain import Run

    from medtrain_plugins.tracking.options import WandBOptions
    from medtrain_plugins.tracking.session import Session

ID_FILE = "wandb.json"


class WandB(Tracker):
    """Weights & Biases: metrics by epoch under one run id, through every interruption."""

    label = "W&B"

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        super().__init__(options)
        self.id = ""
        self.session: Session | None = None

    @classmethod
    def options_model(cls) -> type[WandBOptions]:
        from medtrain_plugins.tracking.options import WandBOptions

        return WandBOptions

    @tracked
    def on_run_start(self, run: Run) -> None:
        """Starts or continues the W&B run of this split, and sends it the existing epochs."""
        from medtrain_plugins.tracking.session import Session

        settings = self.settings(run)
        folder = tracking_folder(run)
        self.id = _choose_id(settings.id, run.split, _read_id(folder) or self.id)
        (folder / ID_FILE).write_text(json.dumps({"id": self.id}) + "\n", encoding="utf-8")
        self.interval = settings.gradient_interval
        self.session = Session(run, settings, self.id, folder, lambda error: self.give_up(run, error))
        assert run.maps is not None
        for record in run.maps.history():
            self.session.put(record["epoch"], record)
        self.session.start()

    @tracked
    def on_epoch_start(self, run: Run) -> None:
        """Samples the steps of the epoch's optimizer."""
        if self.session is not None:
            self.watch_steps(run, self.interval)

    @tracked
    def on_epoch_end(self, run: Run) -> None:
        """Sends the epoch's values."""
        if self.session is None:
            return
        from medtrain_plugins.tracking.values import epoch_values

        if self.sampler is not None:
            self.sampler.take()
        self.session.put(run.epoch, (self.sampler.mean_norm() if self.sampler else {}) | epoch_values(run))

    @tracked
    def on_run_end(self, run: Run) -> None:
        """Waits, up to the time limit, until W&B has everything."""
        self._close(failed=False)

    @tracked
    def on_exception(self, run: Run) -> None:
        """The same for a run that was interrupted or failed."""
        self._close(failed=True)

    def state_dict(self) -> dict[str, Any]:
        return {"id": self.id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.id = state["id"]

    def _close(self, failed: bool) -> None:
        self.unwatch_steps()
        session, self.session = self.session, None
        if session is not None:
            session.close(failed)
        self.id = ""


def _choose_id(given: str, split: int, known: str) -> str:
    """The id of a split's run: the given one (with the split's number after the first), else the recorded one, else a
    new one.
    """
    if given:
        return f"{given}-{split}" if split else given
    return known or secrets.token_hex(4)


def _read_id(folder: Path) -> str:
    try:
        found: str = json.loads((folder / ID_FILE).read_text(encoding="utf-8"))["id"]
        return found
    except (OSError, ValueError, KeyError):
        return ""
