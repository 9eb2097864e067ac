"""What jobs that prepare data share: processes of their own, a report beside the results, no mixture of settings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medtrain.errors import DataError, UsageError
from medtrain.rundir import write_json

Run = Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]]


@contextmanager
def processes(workers: int, start: Callable[[], None] | None = None, chunk: int = 1) -> Iterator[Run]:
    """`run(function, items)`: the results in the order of the items, from this process or from `workers` others.

    start: called first in each of them. chunk: items that travel together. Work that waits is cancelled when the block
    is left, also by an error or Ctrl-C. Raises DataError when a process dies.
    """
    if workers == 1:
        yield lambda function, items: map(function, items)
        return
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(start,)) as pool:
        try:
            yield lambda function, items: pool.map(function, items, chunksize=chunk)
        except BrokenExecutor as error:
            raise DataError(
                "a process ended unexpectedly: not enough memory, or a file that its decoder cannot stand. What is "
                "done is kept; run again with --workers 1"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def refuse_mixture(report: Path, settings: dict[str, Any], keys: Sequence[str]) -> None:
    """UsageError when the report of an earlier job in this folder tells other `keys` of its settings."""
    out = report.parent
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: a file is in the way; name another folder with --out")
    try:
        before = dict(json.loads(report.read_text(encoding="utf-8"))["settings"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{report}: not a report of an earlier preparation ({error}); move it away") from None
    now = json.loads(json.dumps(settings))
    for key in keys:
        if before.get(key) != now[key]:
            raise UsageError(
                f"{out}: what is there was made with {key} = {before.get(key)}, not {now[key]}; name another folder "
                "with --out, or empty this one"
            )


def write_report(report: Path, described: dict[str, Any]) -> None:
    """Write a report beside the results, in one move."""
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_json(report, described)
    except OSError as error:
        raise UsageError(f"{report.parent}: cannot be written to ({error.strerror}); give another --out") from error


def _start_worker(start: Callable[[], None] | None) -> None:
    """Ctrl-C is for the parent to answer; no life after the parent's."""
    import multiprocessing
    import signal
    import threading

    if start is not None:
        start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
