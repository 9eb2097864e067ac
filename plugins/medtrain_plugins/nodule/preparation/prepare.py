"""`medtrain data prepare nodule`: CT scans of any format as arrays of one spacing, with a manifest for training.

Several processes read, check, resample and write scans. Each scan is written completely or not at all, and existing
scans are not made again. Annotations and the split are computed every time, from tables or from readings of LIDC-IDRI.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from medtrain.data import processes, read_table, refuse_mixture, write_report
from medtrain.errors import DataError, UsageError, first_lines

from medtrain_plugins.imaging.volume import Geometry, Volume
from medtrain_plugins.nodule.annotations.luna16 import place_findings, read_characteristics, score_of_nodule, some
from medtrain_plugins.nodule.annotations.tables import Findings, read_findings
from medtrain_plugins.nodule.preparation.check import FailedCheck, as_json, check_volume, quality
from medtrain_plugins.nodule.preparation.splits import DEFAULT, assign_split, parse_split
from medtrain_plugins.nodule.scans.lungs import lung_box, lung_mask
from medtrain_plugins.nodule.scans.manifest import (
    MANIFEST,
    ManifestRow,
    Nodule,
    read_sidecar,
    write_file,
    write_manifest,
    write_prepared,
)
from medtrain_plugins.nodule.scans.resampling import resample
from medtrain_plugins.nodule.scans.sources import SkippedFile, Source, Watch, find_sources

Array = npt.NDArray[Any]

REPORT, SCANS = "preparation.json", "scans"
# Below air: scanners fill the corners with such values.
LEAST_HU = -1024
_LABELS = 255


@dataclass(frozen=True)
class ScanPreparation:
    """How scans are prepared.

    spacing: z, y, x in mm. interpolation: linear or bspline. lungs: "mask" writes a lung mask; "crop" also cuts the
    scan to the lungs and `margin` mm around them; "none" looks for no lungs. min_readers: LIDC nodules with fewer
    readers are irrelevant findings. force: also read files without the DICOM prefix.
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    interpolation: Literal["linear", "bspline"] = "linear"
    lungs: Literal["mask", "crop", "none"] = "mask"
    margin: float = 15.0
    min_readers: int = 3
    force: bool = False


class _Task(NamedTuple):
    source: Source
    image: Path
    reading: Path | None


class _Made(NamedTuple):
    status: str
    findings: tuple[FailedCheck, ...] = ()
    problem: str = ""


def _all(items: Iterable[Any], count: int, label: str) -> Iterable[Any]:
    return items


def prepare(
    source: Path,
    out: Path,
    settings: ScanPreparation | None = None,
    *,
    annotations: Path | None = None,
    excluded: Path | None = None,
    lidc: Path | None = None,
    patients: Path | None = None,
    split: str = DEFAULT,
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
    workers: int | None = None,
    allow_unreadable: bool = False,
    watch: Watch = _all,
) -> dict[str, Any]:
    """Writes the scans in the folder `source` to the folder `out`, with `manifest.jsonl`; returns the report.

    annotations, excluded: LUNA16 tables of nodules and of irrelevant findings. lidc: folder of the XML of readings,
    instead of tables. patients: CSV with series and patient, for files without a patient; without it, a scan of an
    unknown patient counts as a patient of its own. split, seed: see `splits.parse_split`. overwrite: prepare existing
    scans again. dry_run: read headers, write nothing. workers: processes, default one per CPU. allow_unreadable: no
    error when some scans cannot be read.

    The report (`preparation.json` in `out`): settings, counts, scans with their status, figures and failed checks,
    left_out, tables (the outcome of each row), split with the SHA-256 of the manifest. Raises UsageError for unusable
    arguments; DataError if there is no scan, and, after everything else is done, if scans could not be read.
    """
    settings = settings or ScanPreparation()
    method = parse_split(split)
    if lidc is not None and (annotations is not None or excluded is not None):
        raise UsageError("nodules come from tables or from --lidc, not from both")
    refuse_mixture(out / REPORT, asdict(settings), ("spacing", "interpolation", "lungs"))
    tables = _read_tables(annotations, excluded)
    owner = _read_patients(patients)
    readings, left_out = _find_readings(lidc)

    with processes(min(workers or os.cpu_count() or 1, 64)) as run:
        sources, others = find_sources(source, force=settings.force, run=run, watch=watch)
        left_out += others
        tasks = [_Task(one, out / SCANS / f"{_file_name(one.series)}.npy", readings.get(one.series)) for one in sources]
        made = {
            task.image: _Made("planned" if overwrite or not _is_made(task, settings) else "existing") for task in tasks
        }
        if not dry_run:
            write_report(out / REPORT, {"state": "running", "settings": asdict(settings)})
            todo = [task for task in tasks if made[task.image].status == "planned"]
            results = run(partial(_make, settings=settings), todo)
            made |= {task.image: result for task, result in zip(todo, watch(results, len(todo), "Scans"), strict=True)}

    unreadable = [
        SkippedFile(task.source.label, "unreadable", made[task.image].problem)
        for task in tasks
        if made[task.image].problem
    ]
    left_out += unreadable
    report: dict[str, Any] = {
        "state": "planned" if dry_run else "complete",
        "settings": asdict(settings),
        "counts": {
            **{name: sum(one.status == name for one in made.values()) for name in ("prepared", "existing", "planned")},
            "left_out": dict(sorted(Counter(entry.kind for entry in left_out).items())),
        },
        "scans": [],
        "left_out": [entry._asdict() for entry in sorted(left_out)],
        "tables": {},
        "readings_without_scan": sorted(readings.keys() - {one.series for one in sources}),
    }
    if dry_run:
        report["scans"] = [{"source": task.source.label, "status": made[task.image].status} for task in tasks]
        return report

    rows = []
    for task in tasks:
        if made[task.image].problem:
            continue
        told = read_sidecar(task.image)
        rows.append(_row(task, told, owner))
        report["scans"].append(
            {"source": task.source.label, "series": task.source.series, "status": made[task.image].status}
            | {name: told[name] for name in ("quality", "findings")}
        )
    if rows:
        rows = assign_split(_annotate(rows, tables, report), method, seed)
        rows.sort(key=lambda row: row.series)
        report["counts"] |= {
            "nodules": sum(len(row.nodules) for row in rows),
            "irrelevant": sum(len(row.irrelevant) for row in rows),
            "outside": sum(len(row.unplaced) for row in rows),
        }
        digest = write_manifest(out / MANIFEST, rows)
        report["split"] = {
            "deal": split,
            "seed": seed,
            "manifest_sha256": digest,
            "scans": dict(sorted(Counter(_side(row) for row in rows).items())),
            "nodules": dict(sorted(Counter(_side(row) for row in rows for _ in row.nodules).items())),
        }
    write_report(out / REPORT, report)
    if not rows:
        said = [f"{entry['source']}: {entry['reason']}" for entry in report["left_out"]] or ["there are none"]
        raise DataError(f"{source}: not one scan could be prepared\n{first_lines(said, limit=20)}")
    if unreadable and not allow_unreadable:
        said = [f"{entry.source}: {entry.reason}" for entry in unreadable]
        raise DataError(
            f"{len(unreadable)} of {len(tasks)} scans cannot be read; the other {len(rows)} are prepared: {out}\n"
            f"{first_lines(said, limit=20)}\nMend or remove them, or accept this with --allow-unreadable."
        )
    return report


def table_lines(report: Mapping[str, Any]) -> list[str]:
    """The outcome of the rows of each table, as text."""
    lines = []
    for name, account in report["tables"].items():
        lines.append(f"{name}: {account['placed']} of {account['rows']} rows are in scans")
        for key, what in (
            ("repeated", "repeat an earlier row and are taken once"),
            ("outside", "lie outside of their scan (kept in the manifest as unplaced)"),
            ("other_series", "are of series that are not among the scans"),
        ):
            if account[key]:
                lines.append(f"  - {len(account[key])} {what}: {some(account[key])}")
    return lines


def _make(task: _Task, settings: ScanPreparation) -> _Made:
    """Reads, checks, resamples and writes one scan."""
    try:
        volume = task.source.read(force=settings.force)
    except DataError as error:
        return _Made("unreadable", problem=str(error).removeprefix(f"{task.source.files[0]}: "))
    findings = check_volume(volume, task.source.label)
    fatal = [one.message for one in findings if one.check == "finite"]
    if fatal:
        return _Made("unreadable", problem=fatal[0])
    figures = quality(volume)
    lidc: dict[str, Any] | None = None
    labels: Array | None = None
    try:
        if task.reading is not None:
            lidc, labels = _read_marks(task.reading, volume, settings)
            findings += [FailedCheck("readers", "warning", task.source.label, note) for note in lidc["notes"]]
        prepared = resample(replace(volume, array=_padded(volume.array)), settings.spacing, settings.interpolation)
    except DataError as error:
        return _Made("unreadable", problem=str(error))
    lungs = None if settings.lungs == "none" else lung_mask(prepared.array, prepared.spacing)
    if lungs is not None and not lungs.any():
        findings.append(FailedCheck("lungs", "warning", task.source.label, "no lungs were found; nothing is cut off"))
    if labels is not None:
        labels = resample(replace(volume, array=labels), settings.spacing, "nearest", outside=0).array
    if lungs is not None and settings.lungs == "crop":
        box = lung_box(lungs, settings.margin, prepared.spacing)
        if box is not None:
            prepared, lungs, labels = (
                _crop(prepared, box),
                lungs[_slices(box)],
                None if labels is None else labels[_slices(box)],
            )
    whole = replace(prepared, array=np.clip(np.rint(prepared.array), LEAST_HU, 32767).astype(np.int16))
    extra: dict[str, Any] = {
        "made": _key(task, settings),
        "quality": figures,
        "findings": as_json(findings),
        "lidc": lidc,
        "lungs": None,
        "lung_box": None,
        "mask": None,
    }
    if lungs is not None and lungs.any():
        extra["lungs"] = _write_beside(task.image, "lungs", lungs)
        extra["lung_box"] = lung_box(lungs, 0.0, prepared.spacing)
    if labels is not None:
        extra["mask"] = _write_beside(task.image, "nodules", labels.astype(np.uint8))
    write_prepared(task.image, whole, extra)
    return _Made("prepared", tuple(findings))


def _padded(array: Array) -> Array:
    """Corners with values below air become air, so that resampling makes no edge."""
    return np.asarray(np.maximum(array, array.dtype.type(LEAST_HU)))


def _read_marks(path: Path, volume: Volume, settings: ScanPreparation) -> tuple[dict[str, Any], Array]:
    """The LIDC nodules of a scan, as JSON, and their label map on the scan's voxels."""
    from medtrain_plugins.nodule.annotations.lidc import consensus, mark_centres, read_lidc

    reading = read_lidc(path)
    found, notes = consensus(reading, volume)
    labels = np.zeros(volume.shape, dtype=np.int16)
    nodules = []
    for number, one in enumerate(found, start=1):
        enough = one.readers >= settings.min_readers
        if enough and number <= _LABELS:
            labels[tuple(one.voxels.T)] = number
        nodules.append(
            {
                "id": "+".join(one.ids),
                "world": one.world.tolist(),
                "diameter_mm": one.diameter_mm,
                "longest_axial_mm": one.longest_axial_mm,
                "readers": one.readers,
                "label": number if enough and number <= _LABELS else None,
                **one.characteristics,
            }
        )
    small = np.concatenate([mark_centres(reading, volume, kind) for kind in ("small_nodule", "non_nodule")])
    told = {"nodules": nodules, "irrelevant": small.tolist(), "notes": notes}
    return told, labels


def _crop(volume: Volume, box: tuple[tuple[int, ...], tuple[int, ...]]) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_world(np.array(box[0]))
    return replace(volume, array=volume.array[_slices(box)], affine=affine)


def _slices(box: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in zip(*box, strict=True))


def _write_beside(image: Path, kind: str, array: Array) -> str:
    """Writes a map of the scan's voxels beside it; returns the file's name."""
    import io

    path = image.with_name(f"{image.stem}.{kind}.npy")
    content = io.BytesIO()
    np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
    write_file(path, content.getvalue())
    return path.name


def _row(task: _Task, told: Mapping[str, Any], owner: Mapping[str, str]) -> ManifestRow:
    """The manifest row of a prepared scan, with its LIDC nodules if a reading was given."""
    z, y, x = told["shape"]
    geometry = Geometry((z, y, x), np.array(told["affine"]))
    nodules: list[Nodule] = []
    irrelevant: list[Nodule] = []
    unplaced: list[Nodule] = []
    lidc = told["lidc"] or {"nodules": [], "irrelevant": []}
    for one in lidc["nodules"]:
        values = {**one, "score": score_of_nodule(one), "voxel": geometry.to_voxel(one["world"]).tolist()}
        nodule = Nodule(**values)
        if not geometry.contains(one["world"])[0]:
            unplaced.append(nodule)
        else:
            (nodules if nodule.label is not None else irrelevant).append(nodule)
    for number, world in enumerate(lidc["irrelevant"], start=1):
        mark = Nodule(id=f"mark {number}", world=tuple(world), voxel=tuple(geometry.to_voxel(world).tolist()))
        (irrelevant if geometry.contains(world)[0] else unplaced).append(mark)
    return ManifestRow(
        image=str(task.image.resolve()),
        checksum=told["checksum"],
        series=task.source.series,
        patient=owner.get(task.source.series) or told["patient"] or task.source.series,
        source=task.source.label,
        shape=(z, y, x),
        spacing=tuple(told["spacing"]),
        affine=tuple(map(tuple, told["affine"])),
        subset=task.source.subset,
        nodules=tuple(nodules),
        irrelevant=tuple(irrelevant),
        unplaced=tuple(unplaced),
        lungs=None if told["lungs"] is None else str(task.image.resolve().with_name(told["lungs"])),
        mask=None if told["mask"] is None else str(task.image.resolve().with_name(told["mask"])),
        lung_box=told["lung_box"],
        notes=tuple(told["notes"]),
    )


def _annotate(
    rows: list[ManifestRow], tables: Mapping[str, tuple[Findings, dict[str, dict[str, Any]]]], report: dict[str, Any]
) -> list[ManifestRow]:
    """The rows with the findings of the tables; the outcome of the tables' rows is added to the report."""
    scans = {row.series: row.geometry for row in rows}
    for field, (findings, more) in tables.items():
        inside, outside, account = place_findings(findings, scans, more)
        report["tables"][findings.name] = account.as_dict()
        rows = [
            row.model_copy(
                update={
                    field: (*getattr(row, field), *inside.get(row.series, ())),
                    "unplaced": (*row.unplaced, *outside.get(row.series, ())),
                }
            )
            for row in rows
        ]
    return rows


def _read_tables(
    annotations: Path | None, excluded: Path | None
) -> dict[str, tuple[Findings, dict[str, dict[str, Any]]]]:
    tables = {}
    if annotations is not None:
        tables["nodules"] = read_findings(annotations, "annotations"), read_characteristics(annotations)
    if excluded is not None:
        tables["irrelevant"] = read_findings(excluded, "excluded"), {}
    return tables


def _read_patients(path: Path | None) -> dict[str, str]:
    """Series -> patient, from a CSV with columns of these names or similar ones."""
    if path is None:
        return {}
    table = read_table(path)
    names = {str(name).strip().lower(): name for name in table.columns}
    series = next((names[name] for name in ("seriesuid", "series", "series_uid") if name in names), None)
    patient = next((names[name] for name in ("patient", "patient_id", "patientid", "subject") if name in names), None)
    if series is None or patient is None:
        raise DataError(
            f"{path}: has the columns {', '.join(map(str, table.columns))}; seriesuid and patient are needed"
        )
    owner = dict(zip(table[series], table[patient], strict=True))
    return {key: value for key, value in owner.items() if key and value}


def _find_readings(folder: Path | None) -> tuple[dict[str, Path], list[SkippedFile]]:
    """Series -> XML of its reading; other files are skipped with the reason."""
    if folder is None:
        return {}, []
    from medtrain_plugins.nodule.annotations.lidc import read_lidc

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; name the folder of the XML files with --lidc")
    found: dict[str, Path] = {}
    left_out = []
    for path in sorted(folder.rglob("*.xml")):
        label = str(path.relative_to(folder))
        try:
            series = read_lidc(path).series
        except DataError as error:
            left_out.append(SkippedFile(label, "unusable reading", str(error).removeprefix(f"{path}: ")))
            continue
        if series in found:
            left_out.append(SkippedFile(label, "second reading", f"{found[series].name} reads series {series} as well"))
        else:
            found[series] = path
    return found, left_out


def _key(task: _Task, settings: ScanPreparation) -> str:
    """A key that changes when a scan must be prepared again: other files, another reading, other settings."""
    files = [*task.source.files, *([task.reading] if task.reading else [])]
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return sha256(json.dumps([stamps, asdict(settings)]).encode()).hexdigest()


def _is_made(task: _Task, settings: ScanPreparation) -> bool:
    try:
        told = read_sidecar(task.image)
        beside = [task.image.with_name(told[name]) for name in ("lungs", "mask") if told[name]]
        return bool(told["made"] == _key(task, settings)) and all(path.is_file() for path in (task.image, *beside))
    except (DataError, KeyError, OSError):
        return False


def _file_name(series: str) -> str:
    """The series if it can be a file name, else a readable part of it and its hash."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", series):
        return series
    return re.sub(r"[^A-Za-z0-9_-]+", "_", series)[:60].strip("_") + "-" + sha256(series.encode()).hexdigest()[:12]


def _side(row: ManifestRow) -> str:
    return row.split or (f"fold {row.fold}" if row.fold is not None else "none")
