"""The splits of one run, each trained by a process of its own, several at a time."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from medtrain.errors import UsageError

if TYPE_CHECKING:
    from medtrain.config import RunConfig
    from medtrain.rundir import Maps
    from medtrain.statistics import Spread

LEAVE = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass
class _Child:
    split: int
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    started: float


def train_splits(out: Path, count: int, config: RunConfig, quiet: bool, as_json: bool) -> int:
    """Train all splits into the run directory `out`; returns the exit code: that of the first that failed."""
    started = time.perf_counter()
    waiting = [split for split in range(count) if not _is_complete(out, split)]
    if not waiting:
        raise UsageError(f"{out}: the folder already holds a run whose {count} splits are complete; give another --out")
    asked: list[int] = []
    before = {number: signal.signal(number, lambda received, _: asked.append(received)) for number in LEAVE}
    try:
        codes = _train(out, waiting, config.run.concurrent_splits, asked, quiet, as_json)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if failed := [code for code in codes.values() if code]:
        # Interruptions are what the splits were asked for; anything else is the news.
        return next((code for code in failed if code not in (75, 130)), failed[0])
    _tell(out, time.perf_counter() - started, as_json)
    return 0


def _is_complete(out: Path, split: int) -> bool:
    from medtrain.rundir import Maps

    return bool(Maps(out).split(split).status()["status"] == "completed")


def _train(out: Path, waiting: list[int], jobs: int, asked: list[int], quiet: bool, as_json: bool) -> dict[int, int]:
    running, jobs = list[_Child](), min(jobs, len(waiting))
    codes: dict[int, int] = {}
    passed_on = 0
    while running or (waiting and not asked):
        while waiting and len(running) < jobs and not asked:
            running.append(_start(waiting.pop(0), out, jobs))
        for number in asked[passed_on:]:
            for child in running:
                child.process.send_signal(number)
            passed_on += 1
        time.sleep(0.05)
        for child in [child for child in running if child.process.poll() is not None]:
            running.remove(child)
            codes[child.split] = child.process.returncode
            _report(child, quiet, as_json)
    if asked and not codes:
        codes[-1] = 130 if signal.SIGINT in asked else 75
    return codes


def _start(split: int, out: Path, jobs: int) -> _Child:
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    command = [sys.executable, "-m", "medtrain", *sys.argv[1:], "--out", str(out), "--split", str(split), "--quiet"]
    output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the child has been reported
    # A session of its own: what a terminal sends arrives once, through this process.
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
    return _Child(split, process, output, time.perf_counter())


def _report(child: _Child, quiet: bool, as_json: bool) -> None:
    child.output.seek(0)
    text = child.output.read().decode(errors="replace").strip()
    child.output.close()
    seconds = time.perf_counter() - child.started
    if child.process.returncode:
        click.echo(f"split {child.split}: ended with exit code {child.process.returncode}\n{text}", err=True)
    elif not quiet:
        click.echo(f"split {child.split}: trained in {seconds:.0f} s", err=as_json)


def _tell(out: Path, seconds: float, as_json: bool) -> None:
    from medtrain.rundir import Maps, strict

    maps = Maps.open(out)
    name, best = _monitored(maps)
    splits = [{"split": folder.number, **folder.status()} for folder in maps.splits()]
    if as_json:
        summary: dict[str, Any] = {
            "status": "completed",
            "maps": str(out),
            "best_metric": {"name": name, "value": best.mean, "epoch": None, "sd": best.sd, "splits": best.folds},
            "splits": splits,
            "epochs": max(split["epoch"] for split in splits),
            "seconds": round(seconds, 1),
        }
        click.echo(json.dumps(strict(summary)))
        return
    from medtrain.console import console, table

    rows = [[s["split"], s["status"], s["epoch"], s["best"]["value"], s["best"]["epoch"]] for s in splits]
    screen = console()
    screen.print(table(f"{name}, {best.mean:.4f} on average", ["split", "status", "epochs", "best", "epoch"], rows))
    screen.print(f"Run directory  {out}\nNext           medtrain eval {out} --group validation", soft_wrap=True)


def _monitored(maps: Maps) -> tuple[str, Spread]:
    """The value by which the best models were chosen, and its best over the splits that were trained."""
    from medtrain.statistics import spread

    bests = [folder.status().get("best") or {} for folder in maps.splits()]
    names = {best["name"] for best in bests if best.get("name")}
    if len(names) != 1:
        raise UsageError(f"{maps.path}: the splits were monitored by {', '.join(sorted(names)) or 'nothing'}")
    return names.pop(), spread([math.nan if best.get("value") is None else best["value"] for best in bests])
