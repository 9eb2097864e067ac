"""`medtrain run` and `medtrain resume`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from medtrain.errors import UsageError

from medtrain_cli.options import FILE, Request, output_options, request_options

if TYPE_CHECKING:
    from medtrain import TrainResult


@click.command()
@request_options
@click.option("--out", type=FILE, help="The run directory itself; default runs/<UTC time>-<plugin>[-<name>].")
@click.option("--nproc", type=click.IntRange(min=1), default=1, show_default=True, help="Processes on this machine.")
@click.option("--split", type=click.IntRange(min=0), help="Train this split only (one job of an array). Default: all.")
@click.option("--dry-run", is_flag=True, help="Assemble everything, train nothing, write nothing.")
@output_options
def run(
    out: Path | None, nproc: int, split: int | None, dry_run: bool, quiet: bool, as_json: bool, **asked: Any
) -> int:
    """Assemble the chosen plugins into one training run.

    With no data given, a plugin that has a demo trains it. The same command again goes on where it was interrupted.
    """
    request = Request(**asked)
    config = request.resolve()
    if nproc > 1 and not _is_launched():
        return _launch(nproc)
    from medtrain import Trainer
    from medtrain.rundir import default_path

    if _is_main():
        for note in request.notes:
            click.echo(note, err=as_json)
    trainer = Trainer(out, config=config, callbacks=_progress(quiet, as_json))
    if dry_run:
        _echo_dry_run(trainer.dry_run(), as_json)
        return 0
    started = time.perf_counter()
    if split is None and (count := trainer.count_splits()) > 1:
        if _is_launched():
            raise UsageError("several splits on several processes: name one with --split")
        from medtrain_cli.folds import train_splits

        return train_splits(out or default_path(config.run.plugins, config.run.name), count, config, quiet, as_json)
    _finish(trainer.train(split), time.perf_counter() - started, as_json)
    return 0


@click.command()
@click.argument("directory", type=FILE)
@click.option("--split", type=click.IntRange(min=0), help="Which split of the run; needed when there are several.")
@click.option("--checkpoint", default="last", show_default=True, help="A checkpoint's name, or its folder.")
@click.option("--set", "set_", multiple=True, metavar="KEY=VALUE", help="Change one value of the configuration.")
@click.option("--nproc", type=click.IntRange(min=1), default=1, show_default=True, help="Processes on this machine.")
@output_options
def resume(
    directory: Path, split: int | None, checkpoint: str, set_: tuple[str, ...], nproc: int, quiet: bool, as_json: bool
) -> int:
    """Go on with a run from one of its checkpoints."""
    if nproc > 1 and not _is_launched():
        return _launch(nproc)
    from medtrain import Trainer
    from medtrain.rundir import Maps

    if split is None and (count := len(Maps.open(directory).splits())) > 1:
        raise UsageError(
            f"{directory}: {count} splits; name one with --split, or give the `medtrain run` command again"
        )
    trainer = Trainer.from_maps(directory, callbacks=_progress(quiet, as_json) or None, assignments=set_)
    started = time.perf_counter()
    _finish(trainer.resume(split or 0, checkpoint), time.perf_counter() - started, as_json)
    return 0


def _is_launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _launch(nproc: int) -> int:
    from medtrain_cli.processes import launch

    return launch(nproc, sys.argv[1:])


def _progress(quiet: bool, as_json: bool) -> list[Any]:
    if quiet or not _is_main():
        return []
    from medtrain_cli.progress import choose

    return [choose(to_stderr=as_json)]


def _echo_dry_run(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"status": "dry-run", **facts}))
        return
    for name, value in facts.items():
        click.echo(f"{name:22} {value}")


def _finish(result: TrainResult, seconds: float, as_json: bool) -> None:
    if not _is_main():
        return
    if as_json:
        from medtrain.rundir import strict

        summary = {
            "status": "completed",
            "maps": str(result.maps),
            "best_metric": result.best_metric,
            "best_checkpoint": str(result.best_checkpoint),
            "epochs": result.epochs,
            "seconds": round(seconds, 1),
        }
        click.echo(json.dumps(strict(summary)))
        return
    from medtrain.console import console

    from medtrain_cli.output import metrics_table

    screen = console()
    best = result.best_metric
    if best["value"] is not None:
        screen.print(f"\nBest {best['name']} {best['value']:.4f} in epoch {best['epoch'] + 1} of {result.epochs}.")
    screen.print(metrics_table(result.maps, result.split, best["epoch"]))
    screen.print(f"Run directory  {result.maps}", soft_wrap=True)
    screen.print(
        f"Next           medtrain eval {result.maps} --group test\n"
        f"               medtrain runs show {result.maps}\n"
        f"               medtrain resume {result.maps} --set optimization.num_epochs={result.epochs + 5}",
        soft_wrap=True,
    )
