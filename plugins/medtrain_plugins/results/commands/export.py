"""`medtrain export`."""

from __future__ import annotations

import json
from pathlib import Path

import click

FILE = click.Path(path_type=Path)


@click.command(short_help="Write a trained model to one file for other tools: ONNX, int8, pth.")
@click.argument("source", type=FILE, metavar="RUN_OR_CHECKPOINT")
@click.option(
    "--format",
    "format_",
    default="onnx",
    show_default=True,
    metavar="onnx|onnx-int8|pth|safetensors",
    help="ONNX in float32 or with 8-bit weights, where the run's plugin exports it; pth; safetensors.",
)
@click.option("--out", type=FILE, help="Default: <run>-<checkpoint> with the format's suffix, in this folder.")
@click.option("--checkpoint", help="A checkpoint's name; default: the best, else the last.")
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Hold the file against the model, and keep it only if it is as good.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="What 8-bit weights may lose on the validation group, in percentage points.",
)
@click.option("--set", "set_", multiple=True, metavar="KEY=VALUE", help="Change a key, such as data.table.")
@click.option("--json", "as_json", is_flag=True, help="Last line of standard output: one JSON object.")
def export(
    source: Path,
    format_: str,
    out: Path | None,
    checkpoint: str | None,
    check: bool,
    max_drop: float,
    set_: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write a trained model to one file for other tools.

    RUN_OR_CHECKPOINT: a run directory, a split's folder, a checkpoint, or safetensors from `medtrain weights import`.
    """
    from medtrain.errors import UsageError

    from medtrain_plugins.results.export import export_model

    if not source.exists():
        raise UsageError(f"{source}: there is no such run, checkpoint or file; `medtrain runs list` shows runs")
    written = export_model(
        source, format_, out, checkpoint=checkpoint, check=check, max_drop=max_drop, assignments=set_
    )
    if as_json:
        click.echo(json.dumps({"status": "completed", **written}))
        return
    size = f"{written['bytes'] / 1e6:,.2f} MB"
    click.echo(f"Wrote {written['out']}: {written['format']}, {size}, from {written['source']}.")
    for note in written["notes"]:
        click.echo(note)
