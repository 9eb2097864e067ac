"""What ends or pauses a run before its last epoch: signals, the control file in the split's folder, the budget."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from medtrain.config.sections import OptimizationSection
from medtrain.errors import Interrupted, MedtrainError, Preempted
from medtrain.rundir.directory import SplitFolder
from medtrain.runtime.distributed import World

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PAUSE_SECONDS = 1.0  # between two looks at whether the run is to pause, or to go on
SIGNALS_EVERY = 10  # steps between two agreements of several processes on whether a signal arrived


class StopSignal(Exception):
    """Raised inside an epoch when a signal asks the run to checkpoint and leave."""


class Interruptions:
    """Of one split. `signals` is active during the training."""

    def __init__(self, world: World, folder: SplitFolder) -> None:
        self.world, self.folder = world, folder
        self.signals = Signals()
        self._look_at = 0.0

    def signalled(self) -> bool:
        """Whether this process was asked to leave."""
        return self.signals.pending != 0

    def is_leaving(self) -> bool:
        """Whether any process was; all agree."""
        return self.world.any(self.signalled())

    def asked(self, step: int) -> bool:
        """Whether to stop after this step, for good or for a pause; several processes agree now and then."""
        if self.world.size > 1:
            return step % SIGNALS_EVERY == 0 and self.world.any(self._asked())
        return self._asked()

    def _asked(self) -> bool:
        if self.signals.pending:
            return True
        now = time.monotonic()
        if now < self._look_at or not self.world.is_main:
            return False
        self._look_at = now + PAUSE_SECONDS
        return self.folder.is_to_pause()

    def wait(self) -> bool:
        """Wait until the control file is gone; False when the run was asked to leave meanwhile."""
        while self.world.any(self.world.is_main and self.folder.is_to_pause()):
            time.sleep(PAUSE_SECONDS / 4)
            if self.is_leaving():
                return False
        return True

    def error(self, step: int) -> MedtrainError:
        """What a run that was asked to leave ends with, its checkpoint being written."""
        number = signal.SIGINT if self.world.any(self.signals.pending == signal.SIGINT) else signal.SIGTERM
        where = f"checkpoint written at step {step}; go on with `medtrain resume {self.folder.path.parent}`"
        if number == signal.SIGINT:
            return Interrupted(f"interrupted; {where}")
        return Preempted(f"asked to leave; {where}")


class Signals:
    """While active, the first signal is remembered in `pending`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.pending = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._arrived) for number in WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # A terminal and a launcher may both pass on one Ctrl-C; a second one of the user's comes later.
        if self.pending == number == signal.SIGINT and now - self._since > 1.0:
            raise KeyboardInterrupt
        if not self.pending:
            self._since = now
        self.pending = number


class Budget:
    """How long a run may train: optimizer steps and seconds, those of its resumed parts included.

    spent: the reason the budget is exhausted; empty while it is not.
    """

    def __init__(self, settings: OptimizationSection, world: World) -> None:
        self.steps, self.limit, self.world = settings.max_steps, settings.max_seconds, world
        self.limited = self.steps is not None or self.limit is not None
        self.spent = ""
        self._before, self._started = 0.0, time.monotonic()

    def is_spent(self, step: int) -> bool:
        """Whether it is exhausted after so many steps of the run; all processes agree."""
        self.spent = ""
        if self.steps is not None and step >= self.steps:
            self.spent = f"optimization.max_steps = {self.steps} done"
        elif self.limit is not None and self.world.any(self.seconds >= self.limit):
            self.spent = f"optimization.max_seconds = {self.limit:g} spent"
        return bool(self.spent)

    @property
    def seconds(self) -> float:
        """Trained so far."""
        return self._before + time.monotonic() - self._started

    def resume_from(self, seconds: float) -> None:
        """Count from what was trained before."""
        self._before, self._started = seconds, time.monotonic()
