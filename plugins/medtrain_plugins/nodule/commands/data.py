"""`medtrain data prepare nodule`, `medtrain data check nodule` and `medtrain data show nodule`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from medtrain_plugins.nodule.scans.intensity import Intensity

FILE = click.Path(path_type=Path)


@click.command()
@click.option("--source", required=True, type=FILE, help="Folder of scans, with folders at any depth.")
@click.option("--out", required=True, type=FILE, help="Folder to write scans, manifest.jsonl and preparation.json to.")
@click.option("--annotations", type=FILE, help="CSV of nodules: seriesuid, coordX, coordY, coordZ, diameter_mm.")
@click.option("--excluded", type=FILE, help="CSV of irrelevant findings, with the same columns.")
@click.option("--lidc", type=FILE, help="Folder of the XML readings of LIDC-IDRI, instead of tables.")
@click.option("--min-readers", type=click.IntRange(min=1), default=3, show_default=True, help="Of a nodule of --lidc.")
@click.option("--patients", type=FILE, help="CSV of seriesuid and patient, for scans that do not say whose they are.")
@click.option(
    "--spacing", default="1", show_default=True, metavar="MM[,MM,MM]", help="Of the result; three are z, y, x."
)
@click.option(
    "--interpolation", type=click.Choice(["linear", "bspline"]), default="linear", show_default=True, help="Of HU."
)
@click.option(
    "--lungs",
    type=click.Choice(["mask", "crop", "none"]),
    default="mask",
    show_default=True,
    help="Write a mask of the lungs; also cut the scan to them; or do not look for them.",
)
@click.option("--margin", type=click.FloatRange(min=0), default=15.0, show_default=True, help="Mm around cut lungs.")
@click.option(
    "--split",
    default="70/15/15",
    show_default=True,
    help="By patient, alike in nodules and sizes: percentages of training, validation, test; 5-fold; subsets (the "
    "folders subset0, subset1, ... are the folds); none.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Same seed, same split.")
@click.option("--force", is_flag=True, help="Take DICOM files that lack the mark of DICOM.")
@click.option("--allow-unreadable", is_flag=True, help="Exit with 0 when some scans cannot be read.")
@click.option("--overwrite", is_flag=True, help="Make scans again that are there already.")
@click.option("--dry-run", is_flag=True, help="Read the headers, say what would be done, write nothing.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes. Default: one per CPU.")
@click.option("--json", "as_json", is_flag=True, help="Last line of standard output: one JSON object.")
def prepare(
    source: Path,
    out: Path,
    annotations: Path | None,
    excluded: Path | None,
    lidc: Path | None,
    min_readers: int,
    patients: Path | None,
    spacing: str,
    interpolation: Literal["linear", "bspline"],
    lungs: Literal["mask", "crop", "none"],
    margin: float,
    split: str,
    seed: int,
    force: bool,
    allow_unreadable: bool,
    overwrite: bool,
    dry_run: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Resample CT scans to one spacing and write them with a manifest of their nodules and the split.

    Scans are DICOM series, NIfTI, MetaImage or NRRD files. Whatever is left out, and each row of a table that is in no
    scan, is listed here and in preparation.json. A job that was interrupted goes on where it was.

    Nothing is anonymised: the manifest holds the UIDs and patient numbers of the files.
    """
    from medtrain_plugins.nodule.preparation.prepare import ScanPreparation, table_lines
    from medtrain_plugins.nodule.preparation.prepare import prepare as prepare_scans

    report = prepare_scans(
        source,
        out,
        ScanPreparation(_spacing(spacing), interpolation, lungs, margin, min_readers, force),
        annotations=annotations,
        excluded=excluded,
        lidc=lidc,
        patients=patients,
        split=split,
        seed=seed,
        overwrite=overwrite,
        dry_run=dry_run,
        workers=workers,
        allow_unreadable=allow_unreadable,
        watch=_progress,
    )
    counts = report["counts"]
    done = f"{counts['planned']} scans to prepare" if dry_run else f"{counts['prepared']} scans prepared"
    click.echo(f"{done}, {counts['existing']} there already, {len(report['left_out'])} left out: {out}")
    for entry in report["left_out"][:20]:
        click.echo(f"  - {entry['source']}: {entry['kind']} ({entry['reason']})")
    if len(report["left_out"]) > 20:
        click.echo(f"  ... and {len(report['left_out']) - 20} more, in preparation.json")
    if not dry_run:
        told = [finding for scan in report["scans"] for finding in scan["findings"]]
        if told:
            click.echo(f"{len(told)} oddities of scans:")
            from medtrain_plugins.nodule.preparation.check import FailedCheck, by_kind

            for line in by_kind([FailedCheck(**one) for one in told]):
                click.echo(f"  - {line}")
        for line in table_lines(report):
            click.echo(line)
        sides = ", ".join(
            f"{name}: {count} scans, {report['split']['nodules'].get(name, 0)} nodules"
            for name, count in report["split"]["scans"].items()
        )
        click.echo(f"Split {split}: {sides}")
    if as_json:
        import json

        brief = {key: report[key] for key in ("counts", "left_out", "tables", "split") if key in report}
        click.echo(json.dumps({"status": report["state"], "out": str(out), **brief}, allow_nan=False))


@click.command()
@click.option("--source", type=FILE, help="Folder of scans (at any depth), or one scan.")
@click.option("--annotations", type=FILE, help="CSV of nodules.")
@click.option("--excluded", type=FILE, help="CSV of irrelevant findings.")
@click.option("--series", type=FILE, help="The scans there should be, one uid a line.")
@click.option("--manifest", type=FILE, help="manifest.jsonl of prepared scans: rows, checksums, nodules and masks.")
@click.option("--headers", is_flag=True, help="Compare geometries only; do not read the voxels.")
@click.option("--force", is_flag=True, help="Take DICOM files that lack the mark of DICOM.")
@click.option(
    "--margin", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Mm of nodules to the faces."
)
@click.option("--out", type=FILE, help="JSON file for the whole report.")
@click.option("--json", "as_json", is_flag=True, help="Last line of standard output: the report as one JSON object.")
def check(
    source: Path | None,
    annotations: Path | None,
    excluded: Path | None,
    series: Path | None,
    manifest: Path | None,
    headers: bool,
    force: bool,
    margin: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Check scans, LUNA16 tables and manifests, together or alone; nothing is changed.

    Scans: shape, spacing, values, slices. Tables: repeated rows, series without a scan, coordinates outside of their
    scan (with --source), odd diameters. Ends with exit code 3 when there are errors; warnings alone do not.
    """
    import json

    from medtrain.errors import DataError, UsageError

    from medtrain_plugins.nodule.preparation.check import by_kind
    from medtrain_plugins.nodule.preparation.inspection import inspect

    if not any((source, annotations, excluded, manifest)):
        raise UsageError("say what to check: --source, --annotations, --excluded or --manifest")
    report, found = inspect(
        source,
        annotations=annotations,
        excluded=excluded,
        series=series,
        manifest=manifest,
        headers=headers,
        force=force,
        margin=margin,
        watch=_progress,
    )
    for name, account in report["tables"].items():
        click.echo(f"{name}: {account['usable']} of {account['rows']} rows can be used")
    counts = report["summary"]
    click.echo(
        f"{len(report['scans'])} scans, {counts['total_checks']} checks: {counts['passed']} passed, "
        f"{counts['failed']} failed, {counts['warnings']} warnings"
    )
    for line in by_kind(found):
        click.echo(f"  - {line}")
    if out is not None:
        from medtrain_plugins.nodule.scans.manifest import write_file

        write_file(out, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
        click.echo(out)
    if as_json:
        click.echo(json.dumps({"status": "valid" if counts["is_valid"] else "invalid", **report}, allow_nan=False))
    if not counts["is_valid"]:
        raise DataError(f"{counts['failed']} of {counts['total_checks']} checks failed")


@click.command()
@click.argument("scan", type=FILE, required=False)
@click.option("--annotations", type=FILE, help="CSV of nodules; those of the scan's series are circled.")
@click.option("--manifest", type=FILE, help="manifest.jsonl of prepared scans, instead of SCAN.")
@click.option("--series", help="Which series: of a folder or a manifest with several. Default for a manifest: all.")
@click.option("--out", required=True, type=FILE, help="Folder to write the PNG files to.")
@click.option("--window", default="-1000,400", show_default=True, metavar="HU,HU", help="Black and white.")
@click.option("--force", is_flag=True, help="Take DICOM files that lack the mark of DICOM.")
def show(
    scan: Path | None,
    annotations: Path | None,
    manifest: Path | None,
    series: str | None,
    out: Path,
    window: str,
    force: bool,
) -> None:
    """Draw a scan with its nodules: axial, coronal and sagittal panels as PNG files.

    SCAN is a folder of DICOM files, or a NIfTI, MetaImage, NRRD or prepared file.
    """
    from medtrain.errors import DataError, UsageError

    if (scan is None) == (manifest is None):
        raise UsageError("name one SCAN, or a --manifest")
    greys = _window(window)
    if manifest is not None:
        from medtrain_plugins.nodule.preparation.show import show_row
        from medtrain_plugins.nodule.scans.manifest import read_manifest

        rows = [row for row in read_manifest(manifest) if series in (None, row.series)]
        if not rows:
            raise DataError(f"{manifest}: has no series {series}")
        paths = [path for row in rows for path in show_row(row, out, greys)]
    else:
        assert scan is not None
        paths = _show_file(scan, annotations, series, out, greys, force)
    for path in paths:
        click.echo(path)


def _show_file(
    scan: Path, annotations: Path | None, series: str | None, out: Path, window: Intensity, force: bool
) -> list[Path]:
    from medtrain_plugins.imaging.volume import series_of_name
    from medtrain_plugins.nodule.annotations.luna16 import place_findings
    from medtrain_plugins.nodule.annotations.tables import read_findings
    from medtrain_plugins.nodule.preparation.show import show_scan
    from medtrain_plugins.nodule.scans.volume import read_volume

    volume = read_volume(scan, series=series, force=force)
    nodules: list[Any] = []
    if annotations is not None:
        inside, outside, _ = place_findings(read_findings(annotations, "annotations"), {volume.series: volume.geometry})
        nodules = inside.get(volume.series, [])
        click.echo(f"{len(nodules)} nodules of series {volume.series} in {annotations}")
        for one in outside.get(volume.series, []):
            click.echo(f"  - {one.id} lies outside of the scan")
    for note in volume.notes:
        click.echo(f"Note: {note}")
    return show_scan(volume.array, volume.geometry, nodules, out, series_of_name(scan), window=window)


def _spacing(text: str) -> tuple[float, float, float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 1:
        values *= 3
    if len(values) != 3 or not all(0 < value < 100 for value in values):
        raise click.BadParameter(f"{text!r}: give one spacing in mm, or three for z, y and x", param_hint="--spacing")
    return values[0], values[1], values[2]


def _window(text: str) -> Intensity:
    from medtrain.errors import ConfigError

    from medtrain_plugins.nodule.scans.intensity import Intensity

    try:
        low, high = (float(part) for part in text.split(","))
        return Intensity((low, high))
    except (ValueError, ConfigError):
        raise click.BadParameter(f"{text!r}: give two HU, the lower first", param_hint="--window") from None


def _progress(results: Iterable[Any], count: int, label: str) -> Iterable[Any]:
    """`results`, with a bar on a terminal."""
    if not sys.stderr.isatty():
        yield from results
        return
    with click.progressbar(results, length=count, label=label, file=sys.stderr) as bar:
        yield from bar
