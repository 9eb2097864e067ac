"""`medtrain data synth mammography`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--patients", default=320, show_default=True, help="Number of women.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal files.")
@click.option("--height", default=128, show_default=True, help="Rows of an image.")
@click.option("--width", default=96, show_default=True, help="Columns of an image.")
@click.option("--case-fraction", default=0.45, show_default=True, help="Share of women who develop cancer.")
@click.option(
    "--lesion/--no-lesion",
    default=True,
    show_default=True,
    help="Draw the growing masses; without them nothing in the images tells of the cancer to come.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes. Default: one per CPU.")
def synth(
    out: Path,
    patients: int,
    seed: int,
    height: int,
    width: int,
    case_fraction: float,
    lesion: bool,
    workers: int | None,
) -> None:
    """Write a synthetic cohort of mammograms in the EMBED layout.

    Women with two to four exams of both breasts in both views. Some develop cancer: a mass in one breast that grows
    over the exams before the diagnosis, and that nothing else in the data gives away.
    """
    from .synth import synthesize

    counts = synthesize(
        out,
        patients,
        seed,
        image_size=(height, width),
        case_fraction=case_fraction,
        lesion=lesion,
        workers=workers,
    )
    click.echo(
        f"{counts['patients']} women ({counts['cases']} develop cancer), {counts['images']} images of "
        f"{height} x {width} pixels, {counts['breast_pairs']} breasts with a previous exam: {out}"
    )
