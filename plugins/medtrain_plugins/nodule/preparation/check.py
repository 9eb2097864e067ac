"""`medtrain data check nodule`: whether scans, tables and manifests can be used, and what is unusual.

Nothing is changed and nothing is dropped: each problem names the file and the row, and every row of a table is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medtrain_plugins.imaging.volume import Geometry, Volume
from medtrain_plugins.nodule.annotations.luna16 import repeated_rows, some
from medtrain_plugins.nodule.annotations.tables import Findings

Array = npt.NDArray[Any]
Severity = Literal["error", "warning"]

SMALLEST = 32
SPACING_MM = (0.1, 10.0)
ANISOTROPY, ISOTROPIC = 0.5, 0.1
HU, MEAN_HU, LEAST_STD = (-2000.0, 3000.0), (-900.0, 100.0), 10.0
EMPTY = 1e-6
COVERAGE = 0.5
# The largest plausible distance of a chest from the scanner's origin, mm: across the table, and along it.
FARTHEST_MM = (1000.0, 1000.0, 5000.0)
DIAMETERS_MM = (1.0, 100.0)


@dataclass(frozen=True)
class FailedCheck:
    """One failed check. check: its name. where: file, row or scan."""

    check: str
    severity: Severity
    where: str
    message: str


def check_volume(volume: Volume, where: str = "") -> list[FailedCheck]:
    """What is wrong with the geometry and the values of a CT scan."""
    where = where or str(volume.provenance.get("path", "volume"))
    found = check_geometry(volume.geometry, where)
    return found + [FailedCheck(*one[:2], where, one[2]) for one in _values(volume.array)]


def check_geometry(geometry: Geometry, where: str) -> list[FailedCheck]:
    """Shape and spacing: at least 32 voxels per axis, 0.1 to 10 mm, and a warning for very different spacings."""
    found = []
    if min(geometry.shape) < SMALLEST:
        said = f"{_by(geometry.shape)} voxels (z, y, x); at least {SMALLEST} along each axis are needed"
        found.append(FailedCheck("shape", "error", where, said))
    spacing = geometry.spacing
    if spacing.min() < SPACING_MM[0] or spacing.max() > SPACING_MM[1]:
        said = f"spacing {_by(spacing)} mm (z, y, x) is not within {SPACING_MM[0]} to {SPACING_MM[1]} mm"
        found.append(FailedCheck("spacing", "error", where, said))
    elif spacing.max() / spacing.min() - 1 > ANISOTROPY:
        said = f"spacing {_by(spacing)} mm (z, y, x) is far from equal; small nodules are in few slices"
        found.append(FailedCheck("anisotropy", "warning", where, said))
    return found


def check_nodules(
    geometry: Geometry, world: npt.ArrayLike, places: Sequence[str], margin: float = 0.0
) -> list[FailedCheck]:
    """Points (N, 3), x, y, z mm, that lie outside of a scan, or nearer than `margin` mm to its faces."""
    points = np.asarray(world, dtype=np.float64).reshape(-1, 3)
    inside, well_inside = geometry.contains(points), geometry.contains(points, -margin)
    found = []
    for index in np.flatnonzero(~well_inside).tolist():
        at = _by(points[index])
        if not inside[index]:
            voxel = geometry.to_voxel(points[index])
            said = f"{at} mm is outside of the scan: voxel {_by(voxel)} (z, y, x) of {_by(geometry.shape)}"
            found.append(FailedCheck("outside", "error", places[index], said))
        else:
            found.append(
                FailedCheck("margin", "warning", places[index], f"{at} mm is within {margin:g} mm of the scan's faces")
            )
    return found


def check_mask(mask: npt.ArrayLike, shape: Sequence[int], where: str) -> list[FailedCheck]:
    """A mask or label map of nodules on a scan: its shape, negative labels, empty, or covering too much."""
    array = np.asarray(mask)
    if array.shape != tuple(shape):
        said = f"the mask has {_by(array.shape)} voxels, the scan {_by(shape)}"
        return [FailedCheck("mask shape", "error", where, said)]
    found = []
    if array.dtype.kind in "if" and (array < 0).any():
        found.append(
            FailedCheck("mask values", "error", where, f"{int((array < 0).sum())} voxels of the mask are negative")
        )
    share = float((array != 0).mean()) if array.size else 0.0
    if share == 0:
        found.append(FailedCheck("mask empty", "warning", where, "the mask is empty"))
    elif share > COVERAGE:
        found.append(FailedCheck("mask coverage", "warning", where, f"the mask covers {share:.0%} of the scan"))
    return found


def quality(volume: Volume) -> dict[str, Any]:
    """Figures of a scan, as JSON: shape, spacing, isotropic (within 10 %), range, mean, std and zero slices."""
    values = np.asarray(volume.array)
    finite = values if values.dtype.kind in "iub" else values[np.isfinite(values)]
    mean, std = _moments(finite) if finite.size else (None, None)
    spacing = volume.spacing
    return {
        "shape": list(volume.shape),
        "spacing": spacing.tolist(),
        "isotropic": bool(spacing.max() / spacing.min() - 1 < ISOTROPIC),
        "minimum": float(finite.min()) if finite.size else None,
        "maximum": float(finite.max()) if finite.size else None,
        "mean": mean,
        "std": std,
        "zero_slices": _zero_slices(values),
    }


def summary(found: Iterable[FailedCheck], total: int) -> dict[str, Any]:
    """As JSON: total_checks, passed, failed, warnings, errors and warning_messages as texts, is_valid.

    total: the number of checks. Several problems of one kind in one place count as one failed check.
    """
    found = list(found)
    failed = {(one.check, one.where) for one in found if one.severity == "error"}
    warned = {(one.check, one.where) for one in found if one.severity == "warning"} - failed
    return {
        "total_checks": total,
        "passed": total - len(failed),
        "failed": len(failed),
        "warnings": len(warned),
        "errors": [f"{one.where}: {one.message}" for one in found if one.severity == "error"],
        "warning_messages": [f"{one.where}: {one.message}" for one in found if one.severity == "warning"],
        "is_valid": not failed,
    }


def check_table(
    findings: Findings,
    kind: Literal["annotations", "excluded"],
    *,
    listed: Sequence[str] | None = None,
    scans: Mapping[str, Geometry] | None = None,
    margin: float = 0.0,
) -> tuple[list[FailedCheck], dict[str, Any]]:
    """Checks a LUNA16 table; returns the failed checks and the account of its rows.

    listed: the expected series. scans: series -> geometry of the scans; without them, coordinates are only compared
    with the reach of any scanner. margin: see `check_nodules`. The account (`rows`, `usable`, `repeated`, `outside`,
    `unknown_series`, `implausible`, each with the places) adds up: a row is counted once, under the first of these that
    applies.
    """
    name = findings.name
    found: list[FailedCheck] = []
    again = repeated_rows(findings)
    state: dict[int, str] = dict.fromkeys(again, "repeated")
    if again:
        said = f"{len(again)} rows repeat an earlier one and are taken once: {some([findings.place(i) for i in again])}"
        found.append(FailedCheck("repeated rows", "warning", name, said))

    known = set(listed) if listed is not None else set(scans) if scans is not None else None
    if known is not None:
        rows = [i for i, uid in enumerate(findings.series) if str(uid) not in known]
        series = list(dict.fromkeys(str(findings.series[i]) for i in rows))
        if rows:
            said = (
                f"{len(rows)} rows are of {len(series)} series that are not among the scans: {some(series, 3)} "
                f"({some([findings.place(i) for i in rows])})"
            )
            found.append(FailedCheck("unknown series", "error", name, said))
        state |= {i: "unknown_series" for i in rows if i not in state}
    far = np.flatnonzero((np.abs(findings.xyz) > FARTHEST_MM).any(axis=1)).tolist()
    for i in far:
        said = f"{_by(findings.xyz[i])} mm is farther from the origin than any scanner reaches"
        found.append(FailedCheck("implausible", "error", findings.place(i), said))
        state.setdefault(i, "implausible")
    for i in range(len(findings)):
        geometry = (scans or {}).get(str(findings.series[i]))
        if i in state or geometry is None:
            continue
        told = check_nodules(geometry, findings.xyz[i], [findings.place(i)], margin)
        found += told
        if any(one.check == "outside" for one in told):
            state[i] = "outside"
    elsewhere = [i for i, uid in enumerate(findings.series) if i not in state and str(uid) not in (scans or {})]
    if scans is not None and elsewhere:
        said = f"{len(elsewhere)} rows could not be compared with their scan, which is not there"
        found.append(FailedCheck("not compared", "warning", name, said))
    found += _odd_diameters(findings, kind)
    if kind == "annotations":
        found += _near(findings, state)
    account: dict[str, Any] = {"rows": len(findings), "usable": len(findings) - len(state)}
    for what in ("repeated", "unknown_series", "implausible", "outside"):
        account[what] = [findings.place(i) for i in sorted(state) if state[i] == what]
    return found, account


def as_json(found: Iterable[FailedCheck]) -> list[dict[str, str]]:
    """Findings for a report."""
    return [asdict(one) for one in found]


def by_kind(found: Iterable[FailedCheck], limit: int = 3) -> list[str]:
    """Failed checks as text: one line per check, errors first, with the first few places."""
    found = list(found)
    counts = Counter((one.severity, one.check) for one in found)
    lines = []
    for (severity, check), count in sorted(counts.items()):
        shown = [f"{one.where}: {one.message}" for one in found if (one.severity, one.check) == (severity, check)][
            :limit
        ]
        more = f"; and {count - limit} more" if count > limit else ""
        lines.append(f"{severity}, {check} ({count}): " + "; ".join(shown) + more)
    return lines


def _values(array: Array) -> Iterable[tuple[str, Severity, str]]:
    if array.dtype.kind == "f":
        bad = int((~np.isfinite(array)).sum())
        if bad:
            yield "finite", "error", f"{bad} voxels are not finite numbers"
            array = array[np.isfinite(array)]
            if not array.size:
                return
    low, high = float(array.min()), float(array.max())
    if low < HU[0] or high > HU[1]:
        yield "HU range", "error", f"values from {low:g} to {high:g}; HU are within {HU[0]:g} and {HU[1]:g}"
    mean, std = _moments(array)
    if not MEAN_HU[0] <= mean <= MEAN_HU[1]:
        yield (
            "HU mean",
            "warning",
            f"the mean is {mean:.0f}; of a chest in HU it is within {MEAN_HU[0]:g} and {MEAN_HU[1]:g}",
        )
    if std < LEAST_STD:
        yield "contrast", "warning", f"the standard deviation is {std:.1f} HU: nearly one value everywhere"
    if array.ndim == 3 and (empty := _zero_slices(array)):
        yield "zero slices", "warning", f"{len(empty)} slices are all zero: {some([str(i) for i in empty])}"


def _moments(values: Array) -> tuple[float, float]:
    """Mean and standard deviation, slice by slice: a whole scan in double precision would take gigabytes."""
    parts = [part.astype(np.float64) for part in values] if values.ndim < 2 else values
    mean = sum(float(np.sum(part, dtype=np.float64)) for part in parts) / values.size
    square = sum(float(np.square(part.astype(np.float64) - mean).sum()) for part in parts) / values.size
    return mean, float(np.sqrt(square))


def _zero_slices(array: Array) -> list[int]:
    return [i for i in range(len(array)) if not array[i].any() or float(np.abs(array[i]).max()) < EMPTY]


def _odd_diameters(findings: Findings, kind: str) -> list[FailedCheck]:
    found = []
    diameter = findings.diameter
    without = np.flatnonzero(~(diameter > 0)).tolist()
    if without and kind == "annotations":
        said = f"{len(without)} nodules have no diameter above 0: {some([findings.place(i) for i in without])}"
        found.append(FailedCheck("diameter", "error", findings.name, said))
    odd = np.flatnonzero((diameter > 0) & ((diameter < DIAMETERS_MM[0]) | (diameter > DIAMETERS_MM[1]))).tolist()
    if odd:
        places = some([f"{findings.place(i)} ({diameter[i]:g} mm)" for i in odd])
        said = f"{len(odd)} diameters are not within {DIAMETERS_MM[0]:g} to {DIAMETERS_MM[1]:g} mm: {places}"
        found.append(FailedCheck("diameter size", "warning", findings.name, said))
    return found


def _near(findings: Findings, state: Mapping[int, str]) -> list[FailedCheck]:
    """Nodules of one scan whose centres lie within each other's radius: possibly one nodule annotated twice."""
    by_series: dict[str, list[int]] = {}
    for index, series in enumerate(findings.series):
        if state.get(index) != "repeated":
            by_series.setdefault(str(series), []).append(index)
    pairs = []
    for rows in by_series.values():
        points, radii = findings.xyz[rows], np.maximum(findings.diameter[rows], 0) / 2
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)
        close = np.argwhere(np.triu(gaps < np.minimum(radii[:, None], radii[None]), 1))
        pairs += [f"{findings.place(rows[i])} and {findings.place(rows[j])}" for i, j in close.tolist()]
    if not pairs:
        return []
    said = f"{len(pairs)} pairs of nodules lie within each other's radius: {some(pairs)}"
    return [FailedCheck("nodules near", "warning", findings.name, said)]


def _by(values: Iterable[Any]) -> str:
    return " x ".join(f"{float(value):g}" for value in values)
