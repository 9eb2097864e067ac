"""Signals that ask a run to checkpoint and leave."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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
