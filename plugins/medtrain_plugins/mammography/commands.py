"""`medtrain data synth mammography`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--patients", default=320, show_default=True, help="Number of women.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal files.")
@click.option("--height", default=128, show_default=True, help="Rows of an image.")
@click.option("--width", default=96, show_default=True, help="Columns of an image.")
@click.option("--case-fraction", default=0.45, show_default=True, help="Share of women who develop cancer.")
@click.option(
    "--signal",
    type=click.Choice(["growth", "change", "none"]),
    default="growth",
    show_default=True,
    help="What tells of a coming cancer: a mass that grows, a mass that comes or goes between exams (in all other "
    "breasts it stays, or stays away), or nothing.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes. Default: one per CPU.")
def synth(
    out: Path,
    patients: int,
    seed: int,
    height: int,
    width: int,
    case_fraction: float,
    signal: Literal["growth", "change", "none"],
    workers: int | None,
) -> None:
    """Write a synthetic cohort of mammograms in the EMBED layout.

    Women with two to four exams of both breasts in both views. Some develop cancer in one breast; masses tell of it
    (--signal), and nothing else in the data does.
    """
    from .synth import synthesize

    counts = synthesize(
        out,
        patients,
        seed,
        image_size=(height, width),
        case_fraction=case_fraction,
        signal=signal,
        workers=workers,
    )
    click.echo(
        f"{counts['patients']} women ({counts['cases']} develop cancer), {counts['images']} images of "
        f"{height} x {width} pixels, {counts['breast_pairs']} breasts with a previous exam: {out}"
    )
