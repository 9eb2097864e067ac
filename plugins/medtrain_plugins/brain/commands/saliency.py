"""`medtrain saliency brain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=FILE)
@click.argument("input", type=FILE)
@click.option("--out", required=True, type=FILE, help="Folder to write the maps to.")
@click.option(
    "--method",
    type=click.Choice(["integrated_gradients", "gradcam"]),
    default="integrated_gradients",
    show_default=True,
    help="Gradients along the way from the mean image, or the activity of a convolution.",
)
@click.option("--target", default="", help="The class to explain; default: the predicted one.")
@click.option("--layer", default="", help="gradcam: part of the network; default: its last convolution.")
@click.option("--split", default=0, show_default=True, help="Which split of the run.")
@click.option("--checkpoint", help="A checkpoint's name; default: the best, else the last.")
@click.option("--set", "set_", multiple=True, metavar="KEY=VALUE", help="Change a key of the run's configuration.")
def saliency(
    run: Path, input: Path, out: Path, split: int, checkpoint: str | None, set_: tuple[str, ...], **settings: Any
) -> None:
    """Show which voxels of INPUT a trained classifier or regression of the brain plugin rests on.

    INPUT is an image or a BIDS or CAPS tree. For each image a NIfTI in its own geometry and a PNG of three planes.
    """
    from medtrain import Trainer
    from medtrain.errors import UsageError

    from medtrain_plugins.brain.model.saliency import Request

    trainer = Trainer.from_maps(run, assignments=set_)
    if "brain" not in trainer.config.plugins:
        raise UsageError(f"{run}: a run of {', '.join(trainer.config.run.plugins)}; only those of brain are explained")
    table = trainer.predict(Request(input, out, **settings), split_idx=split, checkpoint=checkpoint)
    for row in table.itertuples():
        click.echo(f"{row.sample_id}  {row.target}  {row.map}")
