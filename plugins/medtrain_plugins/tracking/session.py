"""The thread that communicates with W&B, so that training never waits for it."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtrain_plugins.tracking.tracker import describe, warn
from medtrain_plugins.tracking.values import numbers
from medtrain_plugins.tracking.wandb_files import logged_epochs

if TYPE_CHECKING:
    from medtrain import Run

    from medtrain_plugins.tracking.options import WandBOptions

GRACE = 30.0  # seconds after the time limit, for changing to offline mode


class Session(threading.Thread):
    """One W&B run of one process: `put` and `close` hand over the work to this thread.

    failed: called with the exception that ends the session early.
    """

    def __init__(
        self, run: Run, settings: WandBOptions, run_id: str, folder: Path, failed: Callable[[Exception], None]
    ) -> None:
        super().__init__(name="medtrain-wandb", daemon=True)
        # W&B's own error reports would delay the end of the process by half a minute without a connection.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # Imported here and not in the thread: from now on, loader processes may be forked at any moment.
        import wandb

        assert run.maps is not None
        self.wandb: Any = wandb
        self.run_id, self.folder, self.failed = run_id, folder, failed
        self.settings = settings
        self.warn: Callable[[str], None] = lambda message: warn(run, message)
        directory = run.maps.path.parent.resolve().name
        self.facts: dict[str, Any] = {
            "name": settings.name or (f"{directory} split {run.split}" if run.split else directory),
            "group": settings.group or directory,
            "job_type": "train",
            "tags": settings.tags,
            "notes": settings.notes or None,
            "project": settings.project or os.environ.get("WANDB_PROJECT") or "medtrain",
            "entity": settings.entity or None,
            "config": run.config.model_dump(mode="json"),
        }
        self.monitor, self.sign = monitored(run)
        self.best = -math.inf
        self.exit_code = 0
        self.items: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()

    def put(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Queues the record of an epoch, unless W&B has that epoch already."""
        self.items.put((epoch, numbers(record)))

    def close(self, failed: bool) -> None:
        """Finishes the W&B run, and waits for that until the time limit."""
        self.exit_code = int(failed)
        self.items.put(None)
        self.join(self.settings.timeout + GRACE)
        if self.is_alive():
            self.warn(f"W&B: not done after {self.settings.timeout + GRACE:.0f} s, not waited for any longer")

    def run(self) -> None:
        """Opens the run, logs the records and finishes."""
        try:
            live, known = self._open()
            live.define_metric("epoch")
            live.define_metric("*", step_metric="epoch")
            while (item := self.items.get()) is not None:
                self._log(live, known, *item)
            live.finish(exit_code=self.exit_code)
        except Exception as error:
            self.failed(error)

    def _open(self) -> tuple[Any, set[int]]:
        """The W&B run, offline if online fails, and the epochs that it has already."""
        mode = self._choose_mode()
        if mode == "online":
            try:
                live = self._init("online")
                # W&B's step is the epoch's number, so its next step shows which epochs it has.
                return live, set(range(live.step))
            except Exception as error:
                files = self.folder / "wandb" / "offline-run-*"
                self.warn(f"W&B: {describe(error)}; recorded offline, to be uploaded with `wandb sync {files}`")
                return self._turn_offline(), logged_epochs(self.folder, self.run_id)
        return self._init(mode), logged_epochs(self.folder, self.run_id)

    def _turn_offline(self) -> Any:
        """The run offline, after an online attempt, whose id W&B's process may keep for some seconds."""
        for pause in (0, 1, 2, 4, 8):
            time.sleep(pause)
            self.wandb.teardown()
            try:
                return self._init("offline")
            except self.wandb.Error as error:
                if "in use" not in str(error):
                    raise
                failure = error
        raise failure

    def _choose_mode(self) -> str:
        mode: str = self.settings.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if self._has_api_key() else "offline")
        elif mode == "online" and not self._has_api_key():
            self.warn("W&B: no API key is known (`wandb login`, or WANDB_API_KEY); recorded offline")
            mode = "offline"
        return mode

    def _has_api_key(self) -> bool:
        quiet = self.wandb.Settings(silent=True)
        return has_api_key(self.wandb.setup(settings=quiet).settings.base_url)

    def _init(self, mode: str) -> Any:
        limit = self.settings.timeout
        return self.wandb.init(
            **self.facts,
            id=self.run_id,
            resume="allow",
            mode=mode,
            dir=self.folder,
            allow_val_change=True,
            reinit="create_new",  # a run that the user's own code has opened is not touched
            settings=self.wandb.Settings(
                init_timeout=limit,
                finish_timeout=limit,
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                host="",  # names of machines and people are not sent
                x_disable_meta=True,
            ),
        )

    def _log(self, live: Any, known: set[int], epoch: int, values: dict[str, float]) -> None:
        value = values.get(self.monitor, math.nan)
        if self.sign * value > self.best:
            self.best = self.sign * value
            live.summary.update({f"best/{self.monitor}": value, "best/epoch": epoch})
        if epoch not in known:
            live.log({"epoch": epoch, **values}, step=epoch)
            known.add(epoch)


def monitored(run: Run) -> tuple[str, int]:
    """The value whose best goes into the summary, and 1 if larger is better, -1 if smaller."""
    name = run.config.validation.monitor.removeprefix("validation/")
    name = name or next((value for value in run.modes if value != "loss"), "loss")
    return f"validation/{name}", 1 if run.modes.get(name) == "max" else -1


def has_api_key(base_url: str) -> bool:
    """Whether W&B finds credentials without asking the user."""
    import netrc
    from urllib.parse import urlparse

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(base_url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
