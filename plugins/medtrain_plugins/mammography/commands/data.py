"""`medtrain data synth mammography` and `medtrain data prepare mammography`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import click

FILE = click.Path(path_type=Path)


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
    from medtrain_plugins.mammography.synthetic.synth import synthesize

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


@click.command()
@click.option("--source", required=True, type=FILE, help="Folder of DICOM files, with folders at any depth.")
@click.option("--out", required=True, type=FILE, help="Folder to write the images and preparation.json to.")
@click.option(
    "--table",
    type=FILE,
    help="CSV of exams (comma, semicolon or tab): only these are taken, from the folder of that name in SOURCE, with "
    "patient and date of the table. Default: all files, with patient and date of their headers.",
)
@click.option("--exam-column", help="The table's column of exams. Default: inviv, exam_id or exam.")
@click.option("--patient-column", help="The table's column of patients. Default: pid, patient_id or patient.")
@click.option("--date-column", help="The table's column of dates. Default: scr_date, exam_date or date.")
@click.option("--height", type=click.IntRange(min=32), default=2048, show_default=True, help="Rows of an image.")
@click.option("--width", type=click.IntRange(min=32), default=1664, show_default=True, help="Columns of an image.")
@click.option(
    "--threshold",
    default="0",
    show_default=True,
    help="The breast is the largest connected area brighter than this, of 255; or otsu, where the ground is not black.",
)
@click.option(
    "--implants",
    type=click.Choice(["skip", "keep"]),
    default="skip",
    show_default=True,
    help="Breasts with implants, implant-displaced views included.",
)
@click.option("--unstated-intent", is_flag=True, help="Take images that do not say whether they are FOR PRESENTATION.")
@click.option(
    "--name",
    default="{patient}_{laterality}_{view}_{date}_{suffix}.png",
    show_default=True,
    help="Names of the images, of these and {exam}; {suffix} stands for the SOP instance.",
)
@click.option("--overwrite", is_flag=True, help="Make images again that are there already.")
@click.option("--dry-run", is_flag=True, help="Read the headers, say what would be done, write nothing.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes. Default: one per CPU.")
def prepare(
    source: Path,
    out: Path,
    table: Path | None,
    height: int,
    width: int,
    threshold: str,
    implants: str,
    unstated_intent: bool,
    name: str,
    overwrite: bool,
    dry_run: bool,
    workers: int | None,
    **columns: str | None,
) -> None:
    """Write DICOM mammograms as 16-bit PNG images in the EMBED layout.

    The breast is cut out and fitted at the top, right breasts to the right, with its aspect ratio and all its grey
    values. Single images FOR PRESENTATION of a CC or MLO view of one side are taken; all others are counted and listed
    with the reason, here and in preparation.json. A job that was interrupted goes on where it was.

    Nothing is anonymised: names hold patient numbers and dates, preparation.json the SOP instances and paths of the
    sources, and text within the images stays unless it lies apart from the breast.
    """
    from medtrain_plugins.mammography.preparation.prepare import ImagePreparation, kinds
    from medtrain_plugins.mammography.preparation.prepare import prepare as prepare_images

    renamed = {key.removesuffix("_column"): column for key, column in columns.items() if column is not None}
    if renamed and table is None:
        raise click.UsageError("--exam-column, --patient-column and --date-column name columns of a --table")
    report = prepare_images(
        source,
        out,
        ImagePreparation((height, width), _threshold(threshold), name, implants == "keep", unstated_intent),
        table=table,
        columns=renamed,
        overwrite=overwrite,
        dry_run=dry_run,
        workers=workers,
        watch=_progress,
    )
    counts = report["counts"]
    done = f"{counts['planned']} images to prepare" if dry_run else f"{counts['prepared']} images prepared"
    rest = f"{counts['existing']} there already, {len(report['left_out'])} left out"
    click.echo(f"{done} ({height} x {width} pixels), {rest}: {out}")
    for line in kinds(report):
        click.echo(f"  - {line}")
    if counts["other_files"]:
        click.echo(f"{counts['other_files']} other files in {source} are not DICOM.")
    if counts["further_images"]:
        click.echo(f"{counts['further_images']} further images in {out} are not of {source}, or are left out now.")


def _threshold(text: str) -> int | Literal["otsu"]:
    if text == "otsu":
        return "otsu"
    if not text.isdecimal() or int(text) > 254:
        raise click.BadParameter(f"{text!r} is neither a number in 0..254 nor 'otsu'", param_hint="--threshold")
    return int(text)


def _progress(results: Iterable[Any], count: int, label: str) -> Iterable[Any]:
    """`results`, with a bar on a terminal."""
    if not sys.stderr.isatty():
        yield from results
        return
    with click.progressbar(results, length=count, label=label, file=sys.stderr) as bar:
        yield from bar
