"""Inference on a new scan: candidates, their position in the patient and their size."""

from __future__ import annotations

import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from medtrain import Run
from medtrain.errors import DataError, UsageError
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from medtrain_plugins.imaging.volume import Volume
from medtrain_plugins.nodule.annotations.properties import NoduleProperties, measure_nodule, sphere_box, sphere_volume
from medtrain_plugins.nodule.annotations.triage import risk_group, score_of
from medtrain_plugins.nodule.inference.calibration import Calibration
from medtrain_plugins.nodule.inference.peaks import Candidate
from medtrain_plugins.nodule.inference.sliding_window import Maps, compute_maps, find_candidates, stride_of
from medtrain_plugins.nodule.options import InferenceOptions
from medtrain_plugins.nodule.scans.intensity import Intensity
from medtrain_plugins.nodule.scans.lungs import lung_mask
from medtrain_plugins.nodule.scans.resampling import AIR, resample, resample_array
from medtrain_plugins.nodule.scans.volume import FORMATS, read_volume

if TYPE_CHECKING:
    from medtrain_plugins.nodule.options import PivotOptions

Array = NDArray[Any]

CALIBRATION = "calibration.json"
NEAR_MM = 10.0  # largest distance of a candidate from its segmented part
AROUND_MM = 50.0  # distance from a candidate within which its part is measured
MEASURED = (
    "volume_mm3",
    "equivalent_diameter_mm",
    "longest_axial_diameter_mm",
    "sphericity",
    "mean_hu",
    "std_hu",
    "texture",
)
# Of an unpacked zip file: scans are smaller.
MOST_BYTES, MOST_FILES = 16 * 2**30, 100_000


@dataclass(frozen=True)
class Request:
    """Asks `predict` for the whole `DetectedScan` instead of its table. series: which DICOM series."""

    source: Path
    series: str | None = None


@dataclass(frozen=True)
class LocatedCandidate:
    """A candidate with its position in the patient.

    world: x, y, z in mm (LPS). voxel: z, y, x in the scan's canonical orientation; index: i, j, k in the file's own.
    properties: of its segmented part, on the voxels the network saw; None without a segmentation there.
    """

    number: int
    candidate: Candidate
    world: tuple[float, float, float]
    voxel: tuple[float, float, float]
    index: tuple[float, float, float]
    properties: NoduleProperties | None = None

    @property
    def triage(self) -> float | None:
        """The network's triage probability; None without such a head."""
        return self.candidate.triage[0] if self.candidate.triage else None

    @property
    def volume_mm3(self) -> float | None:
        """Of the sphere of the predicted diameter."""
        diameter = self.candidate.diameter_mm
        return None if diameter is None else sphere_volume(diameter)


@dataclass(frozen=True)
class DetectedScan:
    """Everything found in a scan.

    volume: the scan as it was read. prepared: resampled as for training, in HU. maps: from `compute_maps`, on the
    prepared scan at the output stride. labels: on the prepared scan, 0 or the number of the finding; None without a
    segmentation.
    """

    volume: Volume
    prepared: Volume
    maps: Maps
    stride: int
    findings: tuple[LocatedCandidate, ...]
    labels: Array | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    checkpoint: str = ""
    run: str = ""
    seconds: float = 0.0

    def table(self) -> pd.DataFrame:
        """One row per finding, most suspicious first; its first columns are those of a LUNA16 submission."""
        rows = [self._row(finding) for finding in self.findings]
        return pd.DataFrame(rows, columns=list(self._row(None)))

    def _row(self, finding: LocatedCandidate | None) -> dict[str, Any]:
        blank = finding is None
        found = finding or LocatedCandidate(0, Candidate((0, 0, 0), 0.0), (0, 0, 0), (0, 0, 0), (0, 0, 0))
        triage, measured = found.triage, found.properties
        row: dict[str, Any] = {
            "seriesuid": self.volume.series,
            **dict(zip(("coordX", "coordY", "coordZ"), found.world, strict=True)),
            "probability": found.candidate.confidence,
            "diameter_mm": _number(found.candidate.diameter_mm),
            "candidate": found.number,
            **dict(zip(("voxel_z", "voxel_y", "voxel_x"), found.voxel, strict=True)),
            **dict(zip(("index_i", "index_j", "index_k"), found.index, strict=True)),
            "triage": _number(triage),
            "triage_score": _number(None if triage is None else score_of(triage)),
            "risk_group": "" if triage is None or blank else risk_group(triage),
        }
        return row | {name: _number(None if measured is None else getattr(measured, name)) for name in MEASURED}

    def on_input(self, values: Array, interpolation: Any = "linear") -> Array:
        """A map (d, h, w) of the prepared scan, at any stride, on the voxels of the scan as it was read."""
        # Both grids start at the same outer faces.
        scale = [max(round(n / m), 1) for n, m in zip(self.prepared.shape, values.shape, strict=True)]
        factor = self.prepared.spacing * scale / self.volume.spacing
        return resample_array(values, factor, self.volume.shape, interpolation, outside=None)

    def box(self, finding: LocatedCandidate) -> Any:
        """The box (canonical, half-open) of the finding in voxels of the scan as read; None without a diameter."""
        diameter = finding.candidate.diameter_mm
        return None if diameter is None else sphere_box(finding.voxel, diameter, self.volume.spacing, self.volume.shape)


def predict(run: Run, sample: Any, options: PivotOptions) -> pd.DataFrame | DetectedScan:
    """The candidates in a scan as a table (see `DetectedScan.table`); for a `Request` the `DetectedScan`.

    sample: a folder of one DICOM series, a zip file of one, or a file that `volume.read_volume` reads. The scan is
    resampled and windowed as the run's training scans. The calibration is that of the options, or the file
    `calibration.json` in the split's folder, if it exists.
    """
    request = sample if isinstance(sample, Request) else Request(Path(sample))
    begin = time.perf_counter()
    with open_scan(request.source, request.series) as volume:
        found = find_nodules(
            run.model,
            volume,
            options,
            device=run.device,
            amp=run.amp,
            calibration=_calibration(run, options.inference),
        )
    found = replace(
        found,
        checkpoint=run.checkpoint.name if run.checkpoint else "",
        run=run.maps.path.parent.name if run.maps else "",
        seconds=time.perf_counter() - begin,
    )
    return found if isinstance(sample, Request) else found.table()


def find_nodules(
    model: nn.Module,
    volume: Volume,
    options: PivotOptions,
    *,
    device: torch.device,
    amp: torch.dtype | None = None,
    calibration: Calibration | None = None,
) -> DetectedScan:
    """The nodules of a scan. model: the detector, on any device.

    options: `spacing`, `window`, `sampling.patch_size` and `inference` count.
    """
    prepared = resample(volume, options.voxel_mm)
    intensity = Intensity(options.window)
    settings = options.inference
    maps = compute_maps(
        model.to(device),
        intensity(prepared.array),
        settings,
        window=options.sampling.patch_size,
        device=device,
        amp=amp,
        pad_value=float(intensity(AIR)),
        inside=lung_mask(prepared.array, prepared.spacing) if settings.lungs_only else None,
    )
    stride = stride_of(model)
    maps = {name: values.cpu() for name, values in maps.items()}
    candidates = find_candidates(maps, prepared.spacing, settings, stride, calibration)
    segmentation = maps["segmentation"][0].numpy() if "segmentation" in maps else None
    world = prepared.to_world([one.zyx for one in candidates]) if candidates else np.zeros((0, 3))
    voxel = volume.to_voxel(world)
    index = _file_index(volume, voxel)
    findings = [
        LocatedCandidate(
            number,
            candidate,
            _triple(world[number - 1]),
            _triple(voxel[number - 1]),
            _triple(index[number - 1]),
            None if segmentation is None else _measure(segmentation, candidate, prepared),
        )
        for number, candidate in enumerate(candidates, start=1)
    ]
    labels = None if segmentation is None else label_parts(segmentation, candidates, prepared.spacing)
    told = {
        "spacing": list(options.voxel_mm),
        "window_hu": list(options.window),
        "patch_size": list(options.sampling.patch_size),
        "inference": settings.model_dump(mode="json", exclude={"calibration"}),
    }
    return DetectedScan(volume, prepared, maps, stride, tuple(findings), labels, told, calibration)


@contextmanager
def open_scan(source: Path, series: str | None = None) -> Iterator[Volume]:
    """Reads a scan, also from a zip file. Raises DataError."""
    if not (source.is_file() and zipfile.is_zipfile(source)):
        yield read_volume(source, series=series)
        return
    with tempfile.TemporaryDirectory(prefix="medtrain-") as folder:
        _unpack(source, Path(folder))
        inner = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        single = [path for path in inner if path.name.lower().endswith((".nii", ".nii.gz", ".mhd", ".mha", ".nrrd"))]
        try:
            volume = read_volume(single[0] if len(single) == 1 else Path(folder), series=series)
        except DataError as error:
            raise DataError(str(error).replace(folder, str(source))) from None
        yield replace(volume, provenance={**volume.provenance, "path": str(source)})


def label_parts(segmentation: Array, candidates: list[Candidate], spacing: Array) -> Array:
    """(D, H, W) int16: 0, or the number (from 1) of the nearest candidate of a segmented part.

    A part belongs to the first, most suspicious candidate whose component it is (`properties.measure_nodule`).
    """
    parts, count = ndimage.label(segmentation > 0.5)
    owner = np.zeros(count + 1, dtype=np.int16)
    for number, candidate in enumerate(candidates, start=1):
        low, high = _around(candidate.zyx, NEAR_MM, spacing, parts.shape)
        local = parts[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        voxels = np.argwhere(local)
        if len(voxels) == 0:
            continue
        distance = np.linalg.norm((voxels + low - candidate.zyx) * spacing, axis=1)
        nearest = int(distance.argmin())
        part = int(local[tuple(voxels[nearest])])
        if distance[nearest] <= NEAR_MM and not owner[part]:
            owner[part] = number
    labelled: Array = owner[parts]
    return labelled


def settings_of(findings: DetectedScan) -> dict[str, Any]:
    """The settings beside the network that influence the findings, as JSON."""
    calibration = findings.calibration
    return findings.settings | {"calibration": None if calibration is None else calibration.model_dump(mode="json")}


def as_properties(measured: NoduleProperties, prepared: Volume) -> dict[str, Any]:
    """Known properties as JSON, with positions in the world (x, y, z in mm) instead of voxels."""
    told = {
        name: value for name, value in asdict(measured).items() if name not in ("centre", "bbox") and value == value
    }
    return {"centre_world": prepared.to_world(measured.centre).tolist(), **told}


def _calibration(run: Run, options: InferenceOptions) -> Calibration | None:
    if options.calibration is not None:
        return Calibration.read(options.calibration)
    path = run.maps.path / CALIBRATION if run.maps else None
    return Calibration.read(path) if path is not None and path.is_file() else None


def _unpack(source: Path, folder: Path) -> None:
    """Unpacks a zip, without files outside the folder. Raises DataError."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > MOST_FILES or sum(member.file_size for member in members) > MOST_BYTES:
                raise DataError(f"{source}: {len(members)} files, too much for one scan; unpack it and name the series")
            for member in members:
                place = (folder / member.filename).resolve()
                if not place.is_relative_to(folder.resolve()):
                    raise DataError(f"{source}: holds {member.filename!r}, which would lie outside of it; refused")
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as inside, place.open("wb") as file:
                    shutil.copyfileobj(inside, file)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise DataError(f"{source}: cannot be unpacked ({error}); give {FORMATS}") from None
    except OSError as error:
        raise UsageError(f"{source}: cannot be unpacked ({error.strerror or error})") from None


def _measure(segmentation: Array, candidate: Candidate, prepared: Volume) -> NoduleProperties | None:
    """Properties within 5 cm of the candidate: anything larger is not a nodule."""
    low, high = _around(candidate.zyx, AROUND_MM, prepared.spacing, prepared.shape)
    near = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    found = measure_nodule(
        segmentation[near],
        np.array(candidate.zyx) - low,
        prepared.spacing,
        image_hu=prepared.array[near],
        max_distance_mm=NEAR_MM,
    )
    if found is None:
        return None
    box = [(a + at, b + at) for (a, b), at in zip(found.bbox, low.tolist(), strict=True)]
    return replace(found, centre=_triple(np.array(found.centre) + low), bbox=(box[0], box[1], box[2]))


def _around(zyx: Any, reach_mm: float, spacing: Array, shape: Any) -> tuple[Array, Array]:
    """First and last + 1 index of the voxels within `reach_mm` of a point, along each axis; at least one."""
    point, reach = np.asarray(zyx, dtype=np.float64), reach_mm / np.asarray(spacing)
    low = np.clip(np.floor(point - reach), 0, np.array(shape) - 1).astype(int)
    high = np.clip(np.ceil(point + reach) + 1, low + 1, shape).astype(int)
    return low, high


def _file_index(volume: Volume, voxel: Array) -> Array:
    """Canonical indices (N, 3), z, y, x, as i, j, k of the file: its fastest axis first."""
    source = np.zeros_like(voxel)
    for axis, (at, flipped) in enumerate(volume.order):
        source[:, at] = volume.shape[axis] - 1 - voxel[:, axis] if flipped else voxel[:, axis]
    # NIfTI files are read i, j, k; all others slices first.
    return source if volume.provenance.get("format") == "NIfTI" else source[:, ::-1]


def _triple(values: Array) -> tuple[float, float, float]:
    a, b, c = (float(value) for value in values)
    return a, b, c


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
