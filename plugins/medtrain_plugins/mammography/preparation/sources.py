"""The DICOM files to prepare: all of a folder, or those of the exams in a table with a folder each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from medtrain.errors import DataError, nearest

from medtrain_plugins.mammography.cohort.cohort import read_text
from medtrain_plugins.mammography.preparation.dicom import read_date

# Canonical name -> accepted column names of a table of exams, the first one found is read.
COLUMNS = {
    "exam": ("inviv", "exam_id", "exam"),
    "patient": ("pid", "patient_id", "patient"),
    "date": ("scr_date", "exam_date", "date"),
}


class Source(NamedTuple):
    """A DICOM file. label: its path within the source. exam, patient, date: from the table; None: from the header."""

    path: Path
    label: str
    exam: str | None = None
    patient: str | None = None
    date: str | None = None


class SkippedFile(NamedTuple):
    """A skipped file, or row of the table: its place, the kind of reason, and the reason."""

    label: str
    kind: str
    reason: str


def read_exams(table: Path, columns: dict[str, str], source: Path) -> tuple[list[Source], list[SkippedFile]]:
    """The exams of a table, as folders within `source`, and the rows that cannot be used.

    columns: "exam", "patient", "date" -> the table's column. Raises DataError for a table that cannot be read.
    """
    raw = read_text(table)
    found = list(raw.columns)
    used: dict[str, str] = {}
    for name, usual in COLUMNS.items():
        accepted = [columns[name]] if name in columns else usual
        column = next((column for column in accepted if column in found), None)
        if column is None:
            raise DataError(
                f"{table}: no column {' or '.join(accepted)}{nearest(accepted[0], found)}; there are "
                f"{', '.join(found)}. Name yours with --{name}-column."
            )
        used[name] = column
    left_out: list[SkippedFile] = []
    exams: dict[str, Source] = {}
    spoilt: set[str] = set()
    for line, row in raw.iterrows():
        place = f"{table.name}:{line}"
        exam, patient, day = (row[used[name]] for name in COLUMNS)
        folder = Path(exam)
        name = folder.as_posix()
        if not folder.parts or folder.is_absolute() or ".." in folder.parts:
            left_out.append(
                SkippedFile(place, "no exam", f"{used['exam']} is {exam!r}, the name of a folder is needed")
            )
        elif not patient:
            left_out.append(SkippedFile(place, "no patient", f"{used['patient']} is empty"))
        elif (parsed := read_date(day)) is None:
            left_out.append(SkippedFile(place, "no date", f"{used['date']} is {day!r}, YYYY-MM-DD is needed"))
        elif not (source / folder).is_dir():
            left_out.append(SkippedFile(place, "exam without folder", f"{source / folder} is not there"))
        else:
            entry = Source(source / folder, place, name, patient.removesuffix(".0"), parsed)
            first = exams.setdefault(name, entry)
            if first[2:] != entry[2:]:
                left_out.append(
                    SkippedFile(place, "contradictory rows", f"{first.label} says otherwise of exam {name}")
                )
                spoilt.add(name)
    for name in sorted(spoilt):
        place = exams.pop(name).label
        left_out.append(SkippedFile(place, "contradictory rows", f"a later row says otherwise of exam {name}"))
    return [exams[name] for name in sorted(exams)], left_out


def find_files(source: Path, exams: list[Source] | None) -> tuple[list[Source], list[SkippedFile], int]:
    """The DICOM files sorted by path, the skipped files, and the number of other files.

    exams: folders to search; None searches `source`.
    """
    found: dict[str, list[Source]] = {}
    left_out: list[SkippedFile] = []
    others = 0

    def skip(error: OSError) -> None:
        place = Path(error.filename).relative_to(source).as_posix()
        left_out.append(SkippedFile(place, "unreadable folder", error.strerror or str(error)))

    for exam in [Source(source, "")] if exams is None else exams:
        empty = True
        for folder, folders, names in os.walk(exam.path, onerror=skip):
            folders.sort()
            for path in (Path(folder, name) for name in sorted(names)):
                if _may_be_dicom(path):
                    label = path.relative_to(source).as_posix()
                    found.setdefault(label, []).append(exam._replace(path=path, label=label))
                    empty = False
                else:
                    others += 1
        if exams is not None and empty:
            left_out.append(SkippedFile(exam.label, "exam without images", f"no DICOM file in {exam.path}"))
    for label, claims in found.items():
        if len(claims) > 1:
            lies_in = " and ".join(str(entry.exam) for entry in claims)
            left_out.append(SkippedFile(label, "file of two exams", f"it lies in the folders of {lies_in}"))
    return [claims[0] for _, claims in sorted(found.items()) if len(claims) == 1], left_out, others


def _may_be_dicom(path: Path) -> bool:
    """By its name, or by the DICOM prefix: many archives have files without an extension."""
    if path.name.startswith(".") or path.name == "DICOMDIR":
        return False
    if not path.is_file():
        return False
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return True  # reading it will raise the reason
