"""Parts of a split's folder that processes share: a lock, and files that grow by one line of JSON."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from medtrain.errors import UsageError
from medtrain.rundir.files import strict, write_text

# Locks this process holds. A loader worker is a fork that shares them and may outlive a killed run by seconds, so it
# lets go of them at once: the run can be resumed as soon as its own process is gone.
_LOCKS: set[TextIO] = set()


def _release_locks() -> None:
    for file in _LOCKS:
        file.close()


os.register_at_fork(after_in_child=_release_locks)


class Lock:
    """A lock on a folder, in its file `lock`; it goes with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock; UsageError when another process has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"{self.folder}: another process is training this split") from None
            _LOCKS.add(file)
            try:
                yield
            finally:
                _LOCKS.discard(file)

    def is_held(self) -> bool:
        """Whether a process has it."""
        try:
            with (self.folder / "lock").open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


class RecordFile:
    """Records in a file, one line of JSON each; undefined values are None."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: TextIO | None = None

    def append(self, record: dict[str, Any]) -> None:
        # Opened once: opening a file costs as much as several steps of a small model.
        if self._stream is None:
            self._stream = self.path.open("a", encoding="utf-8")
        self._stream.write(_line(record))
        self._stream.flush()

    def read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        # A line that a crash cut short has no end; everything before it is whole.
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Remove the records that are not wanted."""
        if not (records := self.read()):
            return
        self.close()
        write_text(self.path, "".join(_line(record) for record in records if wanted(record)))

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _line(record: dict[str, Any]) -> str:
    return json.dumps(strict(record), allow_nan=False) + "\n"
