"""Files of detections: JSON with its schema, CSV, NIfTI images in the geometry of the scan, figures.

The identifiers of the scan are kept, so that a finding can be assigned to its patient. `deidentify` replaces them by
random ones, and leaves out paths and texts that quote them.
"""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
from medtrain.errors import UsageError
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from medtrain_plugins.imaging.volume import RAS_TO_LPS, Volume
from medtrain_plugins.nodule.annotations.triage import risk_group, score_of, summarize_triage
from medtrain_plugins.nodule.evaluation.report import LIMITS
from medtrain_plugins.nodule.inference.predict import DetectedScan, LocatedCandidate, as_properties, settings_of
from medtrain_plugins.nodule.preparation.show import show_scan
from medtrain_plugins.nodule.scans.intensity import Intensity
from medtrain_plugins.nodule.scans.manifest import Nodule, write_file

Array = NDArray[Any]
Point = tuple[float, float, float]
Bounds = tuple[int, int]

SCHEMA: Literal["medtrain-nodule-detections"] = "medtrain-nodule-detections"
DOCUMENT, SCHEMA_FILE, TABLE = "detections.json", "detections.schema.json", "candidates.csv"
HEATMAP, MASK = "heatmap.nii.gz", "mask.nii.gz"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TriageDocument(_Part):
    """The predicted urgency of a candidate. score: 1 to 10."""

    probability: float = Field(ge=0, le=1)
    score: float = Field(ge=1, le=10)
    group: Literal["high", "medium", "low"]


class CandidateDocument(_Part):
    """A candidate. Lengths are in mm; boxes half-open, z, y, x; `volume_mm3` is the sphere of `diameter_mm`."""

    number: int = Field(ge=1)
    world: Point = Field(description="x, y, z, mm, LPS: +x left, +y back, +z head")
    voxel: Point = Field(description="z, y, x, of the scan turned to head, back, left")
    index: Point = Field(description="i, j, k of the file, its fastest axis first")
    confidence: float = Field(ge=0, le=1, description="calibrated, where the settings name a calibration")
    diameter_mm: float | None = Field(gt=0)
    volume_mm3: float | None = Field(gt=0)
    box: tuple[Bounds, Bounds, Bounds] | None
    triage: TriageDocument | None
    properties: dict[str, Any] | None = Field(
        description="of the segmented part that is nearest, on the voxels the network saw"
    )


class ScanDocument(_Part):
    """The scan as it was read."""

    series: str
    patient: str
    deidentified: bool
    path: str | None
    format: str
    shape: tuple[int, int, int] = Field(description="z, y, x")
    spacing: Point = Field(description="z, y, x, mm")
    affine: list[list[float]] = Field(description="4 x 4: z, y, x, 1 to x, y, z in mm (LPS)")


class ModelDocument(_Part):
    """The network."""

    run: str
    checkpoint: str
    medtrain: str


class SummaryDocument(_Part):
    """Summary of all candidates; groups are those of triage."""

    num_detections: int
    max_triage_score: float | None
    high_risk_count: int
    medium_risk_count: int
    low_risk_count: int


class DetectionsDocument(_Part):
    """All detections in a scan."""

    schema_name: Literal["medtrain-nodule-detections"] = Field(SCHEMA, alias="schema")
    version: Literal[1] = 1
    created: datetime
    scan: ScanDocument
    model: ModelDocument
    settings: dict[str, Any]
    candidates: list[CandidateDocument]
    summary: SummaryDocument
    files: list[str]
    notes: list[str]
    seconds: float = Field(ge=0)
    limits: str


def json_schema() -> dict[str, Any]:
    """The JSON schema of `detections.json`."""
    described = DetectionsDocument.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **described}


def write_detections(
    found: DetectedScan, out: Path, *, deidentify: bool = False, panels: int = 10, heatmap: bool = True
) -> list[Path]:
    """Writes everything about a scan to the folder `out`, the JSON last; returns the paths.

    deidentify: random identifiers instead of the scan's. panels: figures of at most this many candidates; 0: none.
    heatmap: also write the network's heatmap as NIfTI. A mask is written if the network has a segmentation head. Raises
    UsageError if the folder cannot be written.
    """
    series, patient = found.volume.series, found.volume.patient
    if deidentify:
        series, patient = (f"2.25.{uuid4().int}" for _ in range(2))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written to ({error.strerror or error}); name another folder") from None
    table = found.table()
    table["seriesuid"] = series
    write_file(out / TABLE, table.to_csv(index=False).encode())
    paths = [out / TABLE]
    if heatmap:
        # Four digits are precise enough for a probability, and take a tenth of the space.
        values = found.on_input(found.maps["heatmap"][0].numpy().round(4))
        paths.append(_write_nifti(out / HEATMAP, values.astype(np.float32), found.volume))
    if found.labels is not None:
        paths.append(_write_nifti(out / MASK, found.on_input(found.labels, "nearest"), found.volume))
    if panels:
        paths += _write_panels(found, out, panels)
    write_file(out / SCHEMA_FILE, (json.dumps(json_schema(), indent=1) + "\n").encode())
    document = describe(found, series, patient, deidentify, [path.name for path in paths])
    text = document.model_dump_json(by_alias=True, indent=1)
    write_file(out / DOCUMENT, (text + "\n").encode())
    return [*paths, out / SCHEMA_FILE, out / DOCUMENT]


def describe(
    found: DetectedScan, series: str, patient: str, deidentified: bool = False, files: list[str] | None = None
) -> DetectionsDocument:
    """The detections as the JSON document."""
    from medtrain import __version__

    volume = found.volume
    notes = list(volume.notes)
    if deidentified and notes:
        notes = [f"{len(notes)} notes on the files are left out: they may name them"]
    return DetectionsDocument(
        schema=SCHEMA,
        created=datetime.now(UTC),
        scan=ScanDocument(
            series=series,
            patient=patient,
            deidentified=deidentified,
            path=None if deidentified else str(volume.provenance.get("path", "")),
            format=str(volume.provenance.get("format", "")),
            shape=volume.shape,
            spacing=_point(volume.spacing),
            affine=volume.affine.tolist(),
        ),
        model=ModelDocument(run=found.run, checkpoint=found.checkpoint, medtrain=__version__),
        settings=settings_of(found),
        candidates=[_candidate(found, finding) for finding in found.findings],
        summary=SummaryDocument.model_validate(summarize(found.findings)),
        files=files or [],
        notes=notes,
        seconds=found.seconds,
        limits=LIMITS,
    )


def summarize(findings: tuple[LocatedCandidate, ...]) -> dict[str, float | int | None]:
    """The number of findings, in total and by triage group; findings without triage are in no group."""
    known = [finding.triage for finding in findings if finding.triage is not None]
    return summarize_triage(known) | {"num_detections": len(findings)}


def _candidate(found: DetectedScan, finding: LocatedCandidate) -> CandidateDocument:
    triage = None
    if (probability := finding.triage) is not None:
        triage = TriageDocument(probability=probability, score=score_of(probability), group=risk_group(probability))
    return CandidateDocument(
        number=finding.number,
        world=finding.world,
        voxel=finding.voxel,
        index=finding.index,
        confidence=finding.candidate.confidence,
        diameter_mm=finding.candidate.diameter_mm,
        volume_mm3=finding.volume_mm3,
        box=found.box(finding),
        triage=triage,
        properties=None if finding.properties is None else as_properties(finding.properties, found.prepared),
    )


def _write_panels(found: DetectedScan, out: Path, panels: int) -> list[Path]:
    nodules = [
        Nodule(
            id=f"candidate {finding.number}, score {finding.candidate.confidence:.2f}",
            world=finding.world,
            voxel=finding.voxel,
            diameter_mm=finding.candidate.diameter_mm,
        )
        for finding in found.findings[:panels]
    ]
    window = Intensity(tuple(found.settings["window_hu"]))
    return show_scan(found.volume.array, found.volume.geometry, nodules, out, "candidates", window=window)


def _write_nifti(path: Path, array: Array, volume: Volume) -> Path:
    """Writes an array (Z, Y, X) on a volume's voxels, in the axis order and geometry of its file."""
    import nibabel

    values, affine = volume.to_source_order(array), RAS_TO_LPS @ volume.source_affine()
    if volume.provenance.get("format") != "NIfTI":
        # Files are read slices first; NIfTI starts with the axis along a row.
        values, affine = values.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]]
    image: Any = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    write_file(path, _compressed(image))
    return path


def _compressed(image: Any) -> bytes:
    import gzip

    packed = io.BytesIO()
    # No name and no time, so that equal images give equal files.
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=4, mtime=0, filename="") as file:
        file.write(image.to_bytes())
    return packed.getvalue()


def _point(values: Any) -> Point:
    a, b, c = (float(value) for value in values)
    return a, b, c
