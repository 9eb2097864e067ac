"""Progress of a run: a live display on a terminal, one line per epoch elsewhere. Itself a plugin."""

from __future__ import annotations

import math
import time
from typing import Any

from medtrain import Run, hookimpl
from medtrain.console import console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

REFRESH = 0.25  # seconds between two looks at the loss: each look waits for the device


def choose(to_stderr: bool) -> Any:
    """Live when the stream is a terminal, plain lines otherwise."""
    screen = console(to_stderr)
    return LiveProgress(screen) if screen.is_terminal else PlainProgress(screen)


class PlainProgress:
    """One line per epoch, and one every half minute within long ones."""

    every = 30.0
    transient = True  # not part of the run: a resume brings its own

    def __init__(self, screen: Console) -> None:
        self.screen = screen
        self.started = self.spoken = time.monotonic()
        self.first = 0

    @hookimpl
    def on_run_start(self, run: Run) -> None:
        where = run.maps.path.parent if run.maps else ""
        trainable = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
        self.screen.print(f"{where}: {trainable:,} trainable parameters, {run.device.type}", soft_wrap=True)

    @hookimpl
    def on_epoch_start(self, run: Run) -> None:
        self.started = self.spoken = time.monotonic()
        self.first = run.step

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        now = time.monotonic()
        if now - self.spoken >= self.every:
            self.spoken = now
            self.screen.print(f"{_epoch(run)}  {_state(run, now - self.started, self.first)}", soft_wrap=True)

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        self.screen.print(f"{_epoch(run)}  {summary(run)}", soft_wrap=True)


class LiveProgress:
    """A bar of epochs and a bar of steps with loss, metric, learning rate, samples/s and the time left."""

    transient = True  # not part of the run: a resume brings its own

    def __init__(self, screen: Console) -> None:
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=screen,
            refresh_per_second=4,
        )
        self.looked = self.started = 0.0
        self.first = 0
        self.epochs: Any = None
        self.steps: Any = None

    @hookimpl
    def on_run_start(self, run: Run) -> None:
        self.bars.start()
        self.epochs = self.bars.add_task("epochs", total=run.num_epochs, completed=run.epoch, note="")
        self.steps = self.bars.add_task("steps", total=None, note="")

    @hookimpl
    def on_epoch_start(self, run: Run) -> None:
        self.started, self.first = time.monotonic(), run.step
        self.bars.reset(self.steps, total=run.steps_per_epoch or None, note="")

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        now = time.monotonic()
        if now - self.looked >= REFRESH:
            self.looked = now
            note = _state(run, now - self.started, self.first, short=True)
            self.bars.update(self.steps, total=run.steps_per_epoch, completed=run.progress["done"], note=note)

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        self.bars.update(self.epochs, completed=run.epoch + 1, note="")
        self.bars.console.print(f"{_epoch(run)}  {summary(run)}")

    @hookimpl
    def on_run_end(self, run: Run) -> None:
        self.bars.stop()

    @hookimpl
    def on_exception(self, run: Run) -> None:
        self.bars.stop()


def summary(run: Run) -> str:
    """The epoch's record on one line."""
    shown = [f"lr {run.metrics['learning_rate']:.3g}"]
    for key, value in run.metrics.items():
        group, _, name = key.partition("/")
        if name and isinstance(value, float) and not (group == "train" and name != "loss"):
            shown.append(f"{'val' if group == 'validation' else group} {name} {value:.4f}")
    return "  ".join(shown)


def _epoch(run: Run) -> str:
    return f"epoch {run.epoch + 1}/{run.num_epochs}"


def _state(run: Run, seconds: float, first: int, short: bool = False) -> str:
    done, total = run.progress["done"], run.steps_per_epoch
    sums = run.progress["totals"].terms.values()
    loss = sum(float(s) / float(w) if float(w) else math.nan for s, w in sums)
    assert run.optimizer is not None
    rate = max(group["lr"] for group in run.optimizer.param_groups)
    samples = run.progress["samples_per_step"] * (run.step - first) / seconds if seconds else 0.0
    text = f"loss {loss:.4f}  lr {rate:.3g}  {samples:.1f} samples/s"
    if short:
        return text
    left = (total - done) * seconds / max(1, run.step - first)
    return f"step {done}/{total}  {text}  {left:.0f} s left in this epoch"
