"""`medtrain data prepare mammography`: DICOM mammograms as 16-bit PNG images named as in EMBED.

Two passes over sorted files: headers decide which files are used and their names, then pixels are read. Skipped files
are counted and listed with the reason; nothing is guessed.
"""

from __future__ import annotations

import os
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from medtrain.data import processes, refuse_mixture, write_report
from medtrain.errors import DataError, UsageError, first_lines, nearest
from medtrain.rundir import replace_file
from PIL import Image as PillowImage

from medtrain_plugins.mammography.cohort.cohort import Problems
from medtrain_plugins.mammography.cohort.images import read_header
from medtrain_plugins.mammography.cohort.layouts import EMBED_NAME, EMBED_PATTERN
from medtrain_plugins.mammography.preparation.dicom import (
    Refusal,
    read_date,
    read_laterality,
    read_view,
    reading,
    refuse_kind,
    text,
)
from medtrain_plugins.mammography.preparation.preprocess import Threshold, grey_values, model_image
from medtrain_plugins.mammography.preparation.sources import SkippedFile, Source, find_files, read_exams

NAME = "{patient}_{laterality}_{view}_{date}_{suffix}.png"
FIELDS = ("patient", "laterality", "view", "date", "suffix", "exam")
REPORT = "preparation.json"

_In = TypeVar("_In")
_Out = TypeVar("_Out")
Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]


@dataclass(frozen=True)
class ImagePreparation:
    """How images are prepared, and which are used.

    size: (rows, columns). threshold: see `preprocess.largest_contour`. name: template of the file names. implants: use
    breasts with implants. unstated_intent: use images that do not state whether they are for presentation.
    """

    size: tuple[int, int] = (2048, 1664)
    threshold: Threshold = 0
    name: str = NAME
    implants: bool = False
    unstated_intent: bool = False


class Planned(NamedTuple):
    """An image to make from a file: its name and side (L or R), and its SOP instance."""

    source: Source
    name: str
    laterality: str
    instance: str


def _all(items: Iterable[Any], count: int, label: str) -> Iterable[Any]:
    return items


def prepare(
    source: Path,
    out: Path,
    settings: ImagePreparation | None = None,
    *,
    table: Path | None = None,
    columns: dict[str, str] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    workers: int | None = None,
    watch: Watch = _all,
) -> dict[str, Any]:
    """Writes the mammograms under the folder `source` to the folder `out` and returns the report.

    table: CSV of exams; each has a folder of its name in `source`. columns: "exam", "patient", "date" -> the table's
    column. overwrite: prepare existing images again. dry_run: read headers, write nothing. workers: processes, default
    one per CPU; the result is the same for any number. watch: gets each pass as (results, total, description) and
    passes the results on, for a progress bar. The report (`preparation.json` in `out`): `settings`; `counts`, with the
    files of `source` that are not DICOM and the images in `out` without a file here; `images` (file_name, source,
    sop_instance, status: prepared, existing, or planned in a dry run); `left_out` (source, kind, reason). An image is
    written completely or not at all, and an interrupted job continues. Raises UsageError for unusable settings, folders
    and columns, DataError if there is no image in the end.
    """
    settings = settings or ImagePreparation()
    _check(settings, source)
    refuse_mixture(out / REPORT, asdict(settings), ("size", "threshold", "name"))
    exams, bad_rows = (None, []) if table is None else read_exams(table, columns or {}, source)
    sources, left_out, others = find_files(source, exams)
    left_out += bad_rows

    with processes(min(workers or os.cpu_count() or 1, max(len(sources), 1)), _one_thread, chunk=4) as run:
        plans: list[Planned] = []
        names: dict[str, str] = {}
        for found in watch(run(partial(_plan, settings=settings), sources), len(sources), "Headers"):
            if isinstance(found, SkippedFile):
                left_out.append(found)
            elif found.name in names:
                same = f"{found.name} is the name of {names[found.name]} as well"
                left_out.append(SkippedFile(found.source.label, "duplicate", same))
            else:
                names[found.name] = found.source.label
                plans.append(found)

        status = {plan.name: "planned" for plan in plans}
        if not overwrite:
            status |= {plan.name: "existing" for plan in plans if _is_complete(out / plan.name, settings.size)}
        if not dry_run:
            write_report(out / REPORT, {"state": "running", "settings": asdict(settings)})
            todo = [plan for plan in plans if status[plan.name] == "planned"]
            results = run(partial(_make, out=out, settings=settings), todo)
            for plan, problem in zip(todo, watch(results, len(todo), "Images"), strict=True):
                if problem is None:
                    status[plan.name] = "prepared"
                else:
                    left_out.append(problem)
                    del status[plan.name]

    report = {
        "state": "complete",
        "settings": asdict(settings),
        "counts": {
            **{name: list(status.values()).count(name) for name in ("prepared", "existing", "planned")},
            "left_out": dict(sorted(Counter(entry.kind for entry in left_out).items())),
            "other_files": others,
            "further_images": len(_images(out) - status.keys()),
        },
        "images": [
            {
                "file_name": plan.name,
                "source": plan.source.label,
                "sop_instance": plan.instance,
                "status": status[plan.name],
            }
            for plan in plans
            if plan.name in status
        ],
        "left_out": [{"source": entry.label, "kind": entry.kind, "reason": entry.reason} for entry in sorted(left_out)],
    }
    if not dry_run:
        write_report(out / REPORT, report)
    if not status:
        lines = kinds(report) or ["there are no DICOM files"]
        raise DataError(f"{source}: not one mammogram could be prepared\n" + first_lines(lines, limit=20))
    return report


def kinds(report: dict[str, Any]) -> list[str]:
    """The skipped files, one line per kind: count, and the first places with the reason."""
    problems = Problems()
    for entry in report["left_out"]:
        problems.add(entry["kind"], [f"{entry['source']} ({entry['reason']})"])
    return problems.lines()


def _check(settings: ImagePreparation, source: Path) -> None:
    if not source.is_dir():
        raise UsageError(f"{source}: no such folder; name the folder of DICOM files with --source")
    try:
        used = [field for _, field, _, _ in string.Formatter().parse(settings.name) if field is not None]
        settings.name.format_map(dict.fromkeys(FIELDS, "1"))
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        hint = nearest(str(error.args[0]), FIELDS)
        raise UsageError(f"--name {settings.name}: not a template of {known}{hint}") from None
    if "/" in settings.name or "\\" in settings.name:
        raise UsageError(f"--name {settings.name}: a name, not a path; images lie side by side in --out")
    if not settings.name.lower().endswith(".png"):
        raise UsageError(f"--name {settings.name}: the images are PNG files, the name must end in .png")
    if "suffix" not in used:
        raise UsageError(f"--name {settings.name}: lacks {{suffix}}, which tells two images of one view apart")


def _plan(source: Source, settings: ImagePreparation) -> Planned | SkippedFile:
    """The image to make from a file, by its header."""
    from pydicom import dcmread

    try:
        with reading():
            dataset = dcmread(source.path, stop_before_pixels=True)
            refuse_kind(dataset, implants=settings.implants, unstated_intent=settings.unstated_intent)
            values = {
                "laterality": read_laterality(dataset),
                "view": read_view(dataset, implants=settings.implants),
                "patient": source.patient or text(dataset, "PatientID"),
                "date": source.date or read_date(text(dataset, "StudyDate")),
                "exam": source.exam or text(dataset, "StudyInstanceUID"),
            }
            instance = text(dataset, "SOPInstanceUID") or source.label
        for name, value in values.items():
            if not value and (name != "exam" or "{exam" in settings.name):
                raise Refusal(f"no {name}", "the header has none; give a table of exams with --table")
        suffix = sha256(instance.encode()).hexdigest()[:12]
        file_name = settings.name.format_map({**values, "suffix": suffix})
        if settings.name == NAME and not EMBED_NAME.fullmatch(file_name):
            raise Refusal(
                "unusable name", f"{file_name} is not {EMBED_PATTERN}; give numbers for patients with --table"
            )
        if not re.fullmatch(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{,249}", file_name):
            raise Refusal("unusable name", f"{file_name!r} cannot be the name of a file")
    except Refusal as refusal:
        return SkippedFile(source.label, *refusal.args)
    return Planned(source, file_name, str(values["laterality"]), instance)


def _is_complete(path: Path, size: tuple[int, int]) -> bool:
    try:
        header = read_header(path)
    except DataError:
        return False
    return header.problem() is None and (header.height, header.width) == tuple(size)


def _make(plan: Planned, out: Path, settings: ImagePreparation) -> SkippedFile | None:
    """Writes one image, or returns the problem of its pixels. Raises DataError if it cannot be written."""
    from pydicom import dcmread

    try:
        with reading():
            dataset = dcmread(plan.source.path)
            if "PixelData" not in dataset:
                raise Refusal("no pixel data", "the file has a header only")
            image = grey_values(dataset)
        try:
            pixels = model_image(image, plan.laterality, settings.size, settings.threshold)
        except ValueError as error:
            raise Refusal("flat image", str(error)) from None
    except Refusal as refusal:
        return SkippedFile(plan.source.label, *refusal.args)
    try:
        with replace_file(out / plan.name) as aside:
            PillowImage.fromarray(pixels).save(aside, format="PNG")
    except OSError as error:
        raise DataError(f"{out / plan.name}: cannot be written ({error.strerror or error})") from error
    return None


def _images(folder: Path) -> set[str]:
    """The names of the PNG files in a folder, which may not exist."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.name.lower().endswith(".png")}


def _one_thread() -> None:
    """Keeps OpenCV from starting threads inside worker processes."""
    import cv2

    cv2.setNumThreads(1)
