"""`medtrain eval` and `medtrain predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from medtrain import Trainer
    from medtrain.rundir import Maps

TOGETHER = ("pooled", "ensemble")

SET = click.option("--set", "set_", multiple=True, metavar="KEY=VALUE", help="Change a key of the run's configuration.")

FILE = click.Path(path_type=Path)


@click.command("eval", short_help="Evaluate a run on a group: metrics, predictions, report.")
@click.argument("run", type=FILE)
@click.option("--group", help="Group to evaluate; default: test, or all of the data given with --data.")
@click.option("--data", type=FILE, help="Another table of samples than the run's.")
@click.option("--images", type=FILE, help="The folder of that table's images.")
@click.option("--split", type=click.IntRange(min=0), help="Which split of the run; default: all, and their summary.")
@click.option("--checkpoint", help="A checkpoint's name; default: the best, else the last.")
@click.option("--out", type=FILE, help="Where the files go; default: evaluation-<group> in the split's folder.")
@SET
@click.option("--json", "as_json", is_flag=True, help="Last line of standard output: one JSON object.")
def evaluate(
    run: Path,
    group: str | None,
    data: Path | None,
    images: Path | None,
    split: int | None,
    checkpoint: str | None,
    out: Path | None,
    set_: tuple[str, ...],
    as_json: bool,
) -> None:
    """Evaluate a run (or one of its checkpoints) on a group: metrics, predictions, plots, report."""
    from medtrain import Trainer
    from medtrain.rundir import strict

    maps, split, checkpoint = _located(run, split, checkpoint)
    trainer = Trainer.from_maps(maps.path, assignments=set_)
    group = group or ("test" if data is None and images is None else "all")
    if split is None and len(maps.splits()) > 1 and out is None:
        options = {"checkpoint": checkpoint, "table": data, "images": images}
        return _evaluate_folds(trainer, maps, group, options, as_json)
    split = split or 0
    result = trainer.evaluate(group, split_idx=split, checkpoint=checkpoint, table=data, images=images)
    folder = trainer.report(out)
    intervals = result.details.get("intervals", {})
    if as_json:
        summary = {"status": "completed", "group": group, "out": str(folder), "metrics": result.metrics}
        click.echo(json.dumps(strict({**summary, "intervals": intervals, "undefined": result.reasons})))
        return
    from medtrain.console import console, table

    rows = []
    for name, value in result.metrics.items():
        low, high = intervals.get(name) or (None, None)
        rows.append([name, value, "" if low is None else f"{low:.3f} to {high:.3f}", result.reasons.get(name, "")])
    screen = console()
    title = f"Group {group}, {len(result.rows['sample_id'])} samples"
    screen.print(table(title, ["metric", "value", "95 % CI", "note"], rows))
    screen.print(f"\nReport       {folder / 'report.html'}\nPredictions  {folder / 'predictions.csv'}", soft_wrap=True)


def _evaluate_folds(trainer: Trainer, maps: Maps, group: str, options: dict[str, Any], as_json: bool) -> None:
    from medtrain_plugins.results.folds import evaluate_folds, write_folds

    results = evaluate_folds(trainer, group, **options)
    folder = write_folds(maps, results, f"{', '.join(trainer.plugins.names)}: group {group}")
    if as_json:
        click.echo(json.dumps({"status": "completed", "out": str(folder), **results.to_json()}))
        return
    from medtrain.console import console, table

    rows = []
    for name, one in results.spread.items():
        limits = f"{one.low:.3f} to {one.high:.3f}" if one.folds > 1 else ""
        others = [getattr(results, kind).metrics.get(name) if getattr(results, kind) else None for kind in TOGETHER]
        rows.append([name, one.mean, one.sd, limits, *others])
    screen = console()
    screen.print(
        table(f"Group {group}, {len(results.by_fold)} folds", ["metric", "mean", "SD", "95 % CI", *TOGETHER], rows)
    )
    for kind, reason in results.notes.items():
        screen.print(f"no {kind} values: {reason}", soft_wrap=True)
    screen.print(f"\nReport       {folder / 'report.html'}", soft_wrap=True)


@click.command(short_help="Predict for new data with a trained run.")
@click.argument("run", type=FILE)
@click.argument("input", type=FILE)
@click.option("--split", type=click.IntRange(min=0), help="Which split of the run; default: the mean over all of them.")
@click.option("--checkpoint", help="A checkpoint's name; default: the best, else the last.")
@click.option("--out", type=FILE, help="CSV or Parquet file; default: print.")
@SET
@click.option("--json", "as_json", is_flag=True, help="Last line of standard output: one JSON object.")
def predict(
    run: Path,
    input: Path,
    split: int | None,
    checkpoint: str | None,
    out: Path | None,
    set_: tuple[str, ...],
    as_json: bool,
) -> None:
    """Predict for INPUT (what it may be, the run's plugin says) with a trained run."""
    from medtrain import Trainer
    from medtrain.errors import DataError, UsageError

    from medtrain_plugins.results.folds import average_predictions

    maps, split, checkpoint = _located(run, split, checkpoint)
    if not input.exists():
        raise DataError(f"{input}: there is no such file or folder")
    trainer = Trainer.from_maps(maps.path, assignments=set_)
    numbers = [folder.number for folder in maps.splits()] if split is None else [split]
    tables = [trainer.predict(input, split_idx=number, checkpoint=checkpoint) for number in numbers]
    predictions = average_predictions(tables) if len(tables) > 1 else tables[0]
    if out is not None:
        try:
            if out.suffix == ".parquet":
                predictions.to_parquet(out, index=False)
            else:
                predictions.to_csv(out, index=False)
        except OSError as error:
            raise UsageError(f"{out}: cannot be written ({error}); give another --out") from None
    if as_json:
        rows = json.loads(predictions.to_json(orient="records"))
        click.echo(json.dumps({"status": "completed", "out": str(out) if out else None, "predictions": rows}))
    elif out is None:
        click.echo(predictions.to_csv(index=False), nl=False)
    else:
        click.echo(f"{len(predictions)} predictions in {out}")


def _located(run: Path, split: int | None, checkpoint: str | None) -> tuple[Maps, int | None, str | None]:
    """The run directory behind a path; split and checkpoint as the path names them, else as the options do."""
    from medtrain.rundir import locate

    found = locate(run)
    return found.maps, split if found.split is None else found.split, checkpoint or found.checkpoint
