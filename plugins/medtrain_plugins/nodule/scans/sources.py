"""Scans in a folder: single files, and the DICOM series of each folder, by their headers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from medtrain.errors import DataError, UsageError

from medtrain_plugins.imaging.volume import Volume, series_of_name
from medtrain_plugins.nodule.scans.volume import read_geometry, read_volume

SINGLE = (".mhd", ".mha", ".nrrd", ".nhdr", ".nii", ".nii.gz")
# Files beside scans that are not scans: voxels of .mhd and .nhdr, tables, readings, images, texts.
BESIDE = (
    ".raw",
    ".zraw",
    ".gz",
    ".csv",
    ".tsv",
    ".xml",
    ".json",
    ".txt",
    ".md",
    ".png",
    ".jpg",
    ".pdf",
    ".npy",
    ".npz",
)
_SUBSET = re.compile(r"subset[ _-]?(\d+)", re.IGNORECASE)
Run = Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]]
Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]


class Source(NamedTuple):
    """A scan to read: its label relative to the searched folder, its series, and its files."""

    label: str
    series: str
    files: tuple[Path, ...]
    dicom: bool
    subset: int | None
    instances: tuple[str, ...] = ()  # of DICOM: which image each file holds

    def read(self, *, force: bool = False, pixels: bool = True) -> Volume:
        """The volume. Raises DataError."""
        if self.dicom:
            from medtrain_plugins.imaging.dicom import read_series

            return read_series(self.files, force=force, pixels=pixels, where=self.label)
        return read_volume(self.files[0]) if pixels else read_geometry(self.files[0])

    def joined(self, other: Source) -> Source:
        """With the files of another folder that hold further images of the series."""
        more = [
            (file, image)
            for file, image in zip(other.files, other.instances, strict=True)
            if image not in self.instances
        ]
        return self._replace(
            label=f"{self.label} and {other.label}",
            files=(*self.files, *(file for file, _ in more)),
            instances=(*self.instances, *(image for _, image in more)),
        )


class SkippedFile(NamedTuple):
    """A file or series that is skipped: where it is, the kind of reason, and the reason."""

    source: str
    kind: str
    reason: str


def find_sources(
    folder: Path, *, modality: str = "CT", force: bool = False, run: Run | None = None, watch: Watch | None = None
) -> tuple[list[Source], list[SkippedFile]]:
    """The scans in a folder and its subfolders, by label, and the skipped files.

    modality: of the DICOM series to read. force: also read files without the DICOM prefix. run: maps a function over
    items, such as `map` of a process pool. Raises UsageError when the folder is not there.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; name the folder of the scans with --source")
    sources: list[Source] = []
    folders: list[tuple[Path, Path, list[Path], str, bool]] = []
    for path, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        possible: list[Path] = []
        for name in sorted(files):
            file = Path(path, name)
            if name.startswith("."):
                continue
            if name.lower().endswith(SINGLE):
                label = str(file.relative_to(folder))
                sources.append(Source(label, series_of_name(file), (file,), False, subset_of(file)))
            elif not name.lower().endswith(BESIDE):
                possible.append(file)
        if possible:
            folders.append((folder, Path(path), possible, modality, force))
    left_out: list[SkippedFile] = []
    results = (run or map)(_find_dicom, folders)
    for found, others in watch(results, len(folders), "Headers") if watch else results:
        sources += found
        left_out += others
    taken: dict[str, Source] = {}
    for source in sorted(sources):
        first = taken.get(source.series)
        if first is not None and first.dicom and not set(source.instances) <= set(first.instances):
            taken[source.series] = first.joined(source)
        elif first is not None:
            same = f"is of series {source.series}, as {first.label} is"
            left_out.append(SkippedFile(source.label, "duplicate", same))
        else:
            taken[source.series] = source
    return list(taken.values()), left_out


def _find_dicom(task: tuple[Path, Path, list[Path], str, bool]) -> tuple[list[Source], list[SkippedFile]]:
    from medtrain_plugins.imaging.dicom import group_series

    root, folder, files, modality, force = task
    label = str(folder.relative_to(root))
    try:
        found, others = group_series(files, force=force)
    except DataError as error:
        return [], [SkippedFile(label, "unreadable", str(error))]
    left_out = [
        SkippedFile(
            str(file.relative_to(root)), "no image" if reason.startswith("no image") else "unusable file", reason
        )
        for file, reason in others
    ]
    sources = []
    for uid, series in found.items():
        where = label if len(found) == 1 else f"{label} ({uid})"
        if series.modality and series.modality != modality:
            left_out.append(SkippedFile(where, "other modality", f"series {uid} is {series.modality}, not {modality}"))
        else:
            sources.append(
                Source(where, uid, tuple(series.paths or ()), True, subset_of(folder / "file"), tuple(series.instances))
            )
    return sources, left_out


def subset_of(path: Path) -> int | None:
    """The number of the LUNA16 subset folder of a scan (subset0 to subset9); None for other folders."""
    for part in reversed(path.parts[:-1]):
        if match := _SUBSET.fullmatch(part):
            return int(match[1])
    return None
