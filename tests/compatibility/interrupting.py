"""A plugin that ends the process it trains in: INTERRUPT="SPLIT:STEP:SIGNAL" is that step of that split."""

from __future__ import annotations

import os
import signal

from medtrain import Run, hookimpl


class Interrupt:
    """Sends its own process a signal after one step."""

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        split, step, name = os.environ.get("INTERRUPT", "-1:-1:KILL").split(":")
        if (run.split, run.step) == (int(split), int(step)):
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
