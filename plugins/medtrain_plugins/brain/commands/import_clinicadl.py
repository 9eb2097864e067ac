"""`medtrain import clinicadl`."""

from __future__ import annotations

from pathlib import Path

import click

FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("maps", type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="Run directory to write.")
@click.option("--split", type=int, default=None, help="This split only; default: all that were trained.")
@click.option("--images", type=FOLDER, default=None, help="Where the BIDS or CAPS tree is now; default: as recorded.")
def import_clinicadl(maps: Path, out: Path, split: int | None, images: Path | None) -> int:
    """Take over a MAPS of ClinicaDL 2.0 as a run directory.

    Configuration, splits, metrics by epoch and weights. What is damaged is told file by file, and every setting that
    has no place here by name. Exits with 3 when a file could not be read.
    """
    from medtrain_plugins.brain.clinicadl.import_maps import import_maps

    found = import_maps(maps, out, split, images)
    for title, lines in (("Damaged or missing", found.problems), ("Without a place here", found.unplaced)):
        if lines:
            click.echo(f"{title}:")
            for line in lines:
                click.echo(f"  - {line}")
    for line in found.notes:
        click.echo(line)
    splits = ", ".join(map(str, found.splits))
    click.echo(f"Splits {splits}: {out}")
    return 3 if found.problems else 0
