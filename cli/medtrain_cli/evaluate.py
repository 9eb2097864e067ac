"""`medtrain eval` and `medtrain predict`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from medtrain_cli.options import FILE

SET = click.option("--set", "set_", multiple=True, metavar="KEY=VALUE", help="Change a key of the run's configuration.")


@click.command("eval")
@click.argument("run", type=FILE)
@click.option("--group", help="Group to evaluate; default: test, or all of the data given with --data.")
@click.option("--data", type=FILE, help="Another table of samples than the run's.")
@click.option("--images", type=FILE, help="The folder of that table's images.")
@click.option("--split", default=0, show_default=True, help="Which split of the run.")
@click.option("--checkpoint", help="A checkpoint's name; default: the best, else the last.")
@click.option("--out", type=FILE, help="Where the files go; default: evaluation-<group> in the split's folder.")
@SET
@click.option("--json", "as_json", is_flag=True, help="Last line of standard output: one JSON object.")
def evaluate(
    run: Path,
    group: str | None,
    data: Path | None,
    images: Path | None,
    split: int,
    checkpoint: str | None,
    out: Path | None,
    set_: tuple[str, ...],
    as_json: bool,
) -> None:
    """Evaluate a run (or one of its checkpoints) on a group: metrics, predictions, plots, report."""
    from medtrain import Trainer
    from medtrain.maps import strict

    maps, split, checkpoint = _locate(run, split, checkpoint)
    trainer = Trainer.from_maps(maps, assignments=set_)
    group = group or ("test" if data is None and images is None else "all")
    result = trainer.evaluate(group, split_idx=split, checkpoint=checkpoint, table=data, images=images)
    folder = trainer.report(out)
    intervals = result.details.get("intervals", {})
    if as_json:
        summary = {"status": "completed", "group": group, "out": str(folder), "metrics": result.metrics}
        click.echo(json.dumps(strict({**summary, "intervals": intervals, "undefined": result.reasons})))
        return
    from medtrain_cli.output import console, table

    rows = []
    for name, value in result.metrics.items():
        low, high = intervals.get(name) or (None, None)
        rows.append([name, value, "" if low is None else f"{low:.3f} to {high:.3f}", result.reasons.get(name, "")])
    screen = console()
    title = f"Group {group}, {len(result.rows['sample_id'])} samples"
    screen.print(table(title, ["metric", "value", "95 % CI", "note"], rows))
    screen.print(f"\nReport       {folder / 'report.html'}\nPredictions  {folder / 'predictions.csv'}", soft_wrap=True)


@click.command()
@click.argument("run", type=FILE)
@click.argument("input", type=FILE)
@click.option("--split", default=0, show_default=True, help="Which split of the run.")
@click.option("--checkpoint", help="A checkpoint's name; default: the best, else the last.")
@click.option("--out", type=FILE, help="CSV or Parquet file; default: print.")
@SET
@click.option("--json", "as_json", is_flag=True, help="Last line of standard output: one JSON object.")
def predict(
    run: Path,
    input: Path,
    split: int,
    checkpoint: str | None,
    out: Path | None,
    set_: tuple[str, ...],
    as_json: bool,
) -> None:
    """Predict for INPUT (what it may be, the run's plugin says) with a trained run."""
    from medtrain import Trainer
    from medtrain.errors import DataError, UsageError

    maps, split, checkpoint = _locate(run, split, checkpoint)
    if not input.exists():
        raise DataError(f"{input}: there is no such file or folder")
    predictions = Trainer.from_maps(maps, assignments=set_).predict(input, split_idx=split, checkpoint=checkpoint)
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


def _locate(run: Path, split: int, checkpoint: str | None) -> tuple[Path, int, str | None]:
    """The run directory behind a path, and split and checkpoint when the path names a checkpoint of it."""
    from medtrain.maps import Maps

    maps = Maps.containing(run)
    inside = run.resolve().relative_to(maps.path.resolve()).parts
    if inside and inside[0].startswith("split-"):
        split = int(inside[0].removeprefix("split-"))
        checkpoint = checkpoint or (inside[1] if len(inside) > 1 else None)
    return maps.path, split, checkpoint
