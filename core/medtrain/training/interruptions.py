"""What asks a run from outside to leave or to wait: signals, and the control file in the split's folder."""

from __future__ import annotations

import signal
import time

from medtrain.errors import Interrupted, MedtrainError, Preempted
from medtrain.rundir.directory import SplitFolder
from medtrain.runtime.distributed import World
from medtrain.training.signals import Signals

PAUSE_SECONDS = 1.0  # between two looks at whether the run is to pause, or to go on


class Interruptions:
    """Of one split. `signals` is active during the training."""

    def __init__(self, world: World, folder: SplitFolder) -> None:
        self.world, self.folder = world, folder
        self.signals = Signals()
        self._looked_at = 0.0

    def signalled(self) -> bool:
        """Whether this process was asked to leave."""
        return self.signals.pending != 0

    def is_leaving(self) -> bool:
        """Whether any process was; all agree."""
        return self.world.any(self.signalled())

    def asked(self) -> bool:
        """Whether to stop between two steps: for good, or (the main process says so) for a pause."""
        if self.signals.pending:
            return True
        now = time.monotonic()
        if not self.world.is_main or now - self._looked_at < PAUSE_SECONDS:
            return False
        self._looked_at = now
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
