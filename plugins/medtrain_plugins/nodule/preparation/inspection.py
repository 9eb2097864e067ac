"""All checks of scans, tables and manifests together, as one report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from medtrain.errors import DataError
from medtrain.rundir import sha256

from medtrain_plugins.imaging.volume import Geometry, Volume
from medtrain_plugins.nodule.annotations.tables import read_findings, read_series
from medtrain_plugins.nodule.preparation.check import (
    FailedCheck,
    as_json,
    check_geometry,
    check_mask,
    check_nodules,
    check_table,
    check_volume,
    quality,
    summary,
)
from medtrain_plugins.nodule.scans.manifest import ManifestRow, open_array, read_manifest
from medtrain_plugins.nodule.scans.sources import Source, Watch, find_sources
from medtrain_plugins.nodule.scans.volume import read_geometry, read_volume

# Number of checks of a geometry, of values, of a table.
_GEOMETRY = ("readable", "shape", "spacing", "anisotropy", "reader", "repeated series")
_VALUES = ("finite", "HU range", "HU mean", "contrast", "zero slices")
_TABLE = (
    "readable",
    "repeated rows",
    "unknown series",
    "implausible",
    "outside",
    "not compared",
    "diameter",
    "diameter size",
)
_ROW = ("readable", "checksum", "outside", "mask")


def _all(items: Iterable[Any], count: int, label: str) -> Iterable[Any]:
    return items


def inspect(
    source: Path | None = None,
    *,
    annotations: Path | None = None,
    excluded: Path | None = None,
    series: Path | None = None,
    manifest: Path | None = None,
    headers: bool = False,
    force: bool = False,
    margin: float = 0.0,
    watch: Watch = _all,
) -> tuple[dict[str, Any], list[FailedCheck]]:
    """The report, as JSON (`summary`, `scans`, `left_out`, `tables`, `findings`), and the failed checks.

    source: folder of scans, or one scan. headers: geometry only. margin: smallest distance in mm of nodules from the
    faces. Raises UsageError for a missing folder; every other problem is a failed check.
    """
    found: list[FailedCheck] = []
    total = 0
    scans: dict[str, Any] = {}
    left_out: list[dict[str, str]] = []
    geometries: dict[str, Geometry] | None = None
    if source is not None:
        geometries = {}
        whole_series = source.is_file() or not source.is_dir()
        sources: list[Source | Path] = [source] if whole_series else []
        if not whole_series:
            several, others = find_sources(source, force=force, watch=watch)
            sources += several
            left_out = [entry._asdict() for entry in others]
            found += [
                FailedCheck(
                    "left out", "error" if entry.kind in ("duplicate", "unreadable") else "warning", *_told(entry)
                )
                for entry in others
            ]
            total += len(others)
            if not sources:
                found.append(FailedCheck("scans", "error", str(source), "has no CT scans"))
                total += 1
        for one in watch(sources, len(sources), "Scans"):
            total += len(_GEOMETRY) + (0 if headers else len(_VALUES))
            where = one.label if isinstance(one, Source) else str(one)
            try:
                volume = _read(one, headers, force)
            except DataError as error:
                found.append(FailedCheck("readable", "error", where, str(error).removeprefix(f"{where}: ")))
                continue
            found += check_geometry(volume.geometry, where) if headers else check_volume(volume, where)
            found += [FailedCheck("reader", "warning", where, note) for note in volume.notes]
            geometries.setdefault(volume.series, volume.geometry)
            figures = {"shape": list(volume.shape), "spacing": volume.spacing.tolist()} if headers else quality(volume)
            scans[where] = {"series": volume.series, "patient": volume.patient, **figures}

    listed: list[str] | None = None
    if series is not None:
        total += 1
        try:
            listed, notes = read_series(series)
            found += [FailedCheck("series list", "warning", series.name, note) for note in notes]
        except DataError as error:
            found.append(FailedCheck("readable", "error", str(series), str(error)))
    tables: dict[str, Any] = {}
    given: tuple[tuple[Path | None, Literal["annotations", "excluded"]], ...] = (
        (annotations, "annotations"),
        (excluded, "excluded"),
    )
    for path, kind in given:
        if path is None:
            continue
        total += len(_TABLE)
        try:
            findings = read_findings(path, kind)
        except DataError as error:
            found.append(FailedCheck("readable", "error", str(path), str(error).removeprefix(f"{path}: ")))
            continue
        oddities, tables[path.name] = check_table(findings, kind, listed=listed, scans=geometries, margin=margin)
        found += oddities
        if geometries is None:
            said = "coordinates were not compared with the scans; name their folder with --source"
            found.append(FailedCheck("not compared", "warning", path.name, said))
    if manifest is not None:
        rows, made = _check_manifest(manifest, margin, found, watch)
        total += made
        scans |= {row.image: {"series": row.series, "patient": row.patient, "shape": list(row.shape)} for row in rows}
    report = {
        "summary": summary(found, total),
        "scans": scans,
        "left_out": left_out,
        "tables": tables,
        "findings": as_json(found),
    }
    return report, found


def _check_manifest(path: Path, margin: float, found: list[FailedCheck], watch: Watch) -> tuple[list[ManifestRow], int]:
    """The rows of a manifest, and the number of checks; failed checks are added to `found`."""
    try:
        rows = read_manifest(path)
    except DataError as error:
        found.append(FailedCheck("readable", "error", str(path), str(error).removeprefix(f"{path}: ")))
        return [], 1
    total = 1
    for row in watch(rows, len(rows), "Prepared scans"):
        total += len(_ROW)
        where = row.image
        if sha256(Path(row.image)) != row.checksum:
            found.append(FailedCheck("checksum", "error", where, "is not the file that was prepared; prepare it again"))
        try:
            row.open()
            if row.mask is not None:
                found += check_mask(open_array(Path(row.mask), row.shape), row.shape, row.mask)
        except DataError as error:
            found.append(FailedCheck("readable", "error", where, str(error)))
        for nodule in row.nodules:
            found += check_nodules(row.geometry, nodule.world, [f"{row.series}, {nodule.id}"], margin)
    return rows, total


def _read(one: Source | Path, headers: bool, force: bool) -> Volume:
    if isinstance(one, Source):
        return one.read(force=force, pixels=not headers)
    return (read_geometry if headers else read_volume)(one, force=force)


def _told(entry: Any) -> tuple[str, str]:
    return entry.source, f"{entry.kind}: {entry.reason}"
