"""The base of trackers: only the main process writes, and a tracker's failure never stops the training."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtrain import hookimpl

if TYPE_CHECKING:
    from medtrain import Run
    from medtrain.config import SectionModel

    from medtrain_plugins.tracking.steps import StepSampler

logger = logging.getLogger("medtrain.tracking")


class Tracker:
    """A tracker, either a plugin by name (with the options of the run) or an object with its own options.

    options: the keys of `tracking.<name>`, for an object given to a Trainer: `callbacks=[TensorBoard({"samples": 0})]`.
    """

    label = "tracker"

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        self.options = options
        self.broken = False
        self.sampler: StepSampler | None = None

    @classmethod
    def options_model(cls) -> type[SectionModel]:
        """The pydantic model of the options."""
        raise NotImplementedError

    @hookimpl
    def plugin_options(self) -> type[SectionModel]:
        """The keys of `tracking.<name>`."""
        return self.options_model()

    def settings(self, run: Run) -> Any:
        """The validated options, for any name of the plugin."""
        model = self.options_model()
        if self.options is not None:
            return model(**self.options)
        chosen = (options for options in run.config.plugins.values() if isinstance(options, model))
        return next(chosen, None) or model()

    def watch_steps(self, run: Run, interval: int) -> None:
        """Attaches a sampler to the epoch's optimizer."""
        if self.sampler is not None and self.sampler.optimizer is not run.optimizer:
            self.unwatch_steps()
        if self.sampler is None and interval:
            from medtrain_plugins.tracking.steps import StepSampler

            self.sampler = StepSampler(run, interval, lambda error: self._without_norms(run, error))
        if self.sampler is not None:
            self.sampler.begin_epoch()

    def unwatch_steps(self) -> None:
        """Removes the sampler from the optimizer."""
        if self.sampler is not None:
            self.sampler.close()
        self.sampler = None

    def _without_norms(self, run: Run, error: Exception) -> None:
        warn(run, f"{self.label}: no gradient norms: {describe(error)}")

    def give_up(self, run: Run, error: BaseException) -> None:
        """Stops tracking of the run."""
        if self.broken:
            return
        self.broken = True
        self.unwatch_steps()
        warn(run, f"{self.label}: {describe(error)}; the training goes on without it")


def tracked(hook: Callable[[Any, Run], None]) -> Callable[[Any, Run], None]:
    """Makes a lifecycle hook run only in the main process of a run with a folder, and only until a failure."""

    @hookimpl
    @functools.wraps(hook)
    def call(self: Tracker, run: Run) -> None:
        if self.broken or not run.is_main_process or run.maps is None:
            return
        try:
            hook(self, run)
        except Exception as error:  # no failure of a tracker may stop a training run
            self.give_up(run, error)

    return call


def warn(run: Run, message: str) -> None:
    """Warns the user, also in the run's log."""
    logger.warning(message)
    with suppress(OSError):
        if run.maps is not None:
            run.maps.log(message)


def describe(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def tracking_folder(run: Run) -> Path:
    """The folder of trackers' files: `split-<i>/tracking`."""
    assert run.maps is not None
    folder = run.maps.path / "tracking"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
