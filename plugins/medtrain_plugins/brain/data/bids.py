"""A tree of brain images (BIDS raw, a BIDS derivative or CAPS): its files, found by entities, and its tables.

sub-01/ses-M000/anat/sub-01_ses-M000_T1w.nii.gz              raw, or a derivative
subjects/sub-01/ses-M000/t1_linear/sub-01_..._T1w.nii.gz     CAPS
participants.tsv, sessions.tsv, sub-01/sub-01_sessions.tsv   tables
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from medtrain.data import BIDS_MISSING, infer_types, read_cells, read_table, table_from_rows
from medtrain.errors import DataError, first_lines

from medtrain_plugins.brain.data.caps import FileType

DESCRIPTION = "dataset_description.json"
ONLY_SESSION = "ses-1"  # the session name of a participant without session folders
KEYS = ["participant_id", "session_id"]


class Visit(NamedTuple):
    """A participant's session. Sorted by number: ses-M6 is before ses-M12."""

    participant_id: str
    session_id: str

    def __str__(self) -> str:
        return f"{self.participant_id}_{self.session_id}"


class VisitFile(NamedTuple):
    """A file of a visit. folder: inside the session's folder, for example `anat`."""

    folder: str
    name: str
    path: str


def order(visit: Visit) -> Any:
    """The sorting key of visits: numbers in names count as numbers."""
    return tuple(_natural(part) for part in visit)


def _natural(text: str) -> tuple[Any, ...]:
    parts = re.split(r"(\d+)", text)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)


class Tree:
    """The files of a tree of brain images by visit, from one walk over its folders.

    root: folder with `dataset_description.json`. Raises DataError if it is not such a folder, or has no participants.
    Attributes: `root`; `description` (of the data set); `is_caps`; `files`: the files of each Visit (a visit may have
    none).
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{root}: there is no such folder; a BIDS or CAPS tree is expected")
        self.description = _read_description(self.root)
        self.is_caps = "CAPSVersion" in self.description
        subjects = self.root / "subjects"
        if self.is_caps and not subjects.is_dir():
            raise DataError(f"{root}: a CAPS tree has a folder 'subjects', this has none")
        self.subjects = subjects if self.is_caps else self.root
        self.files = dict(self._walk())
        if not self.files:
            raise DataError(f"{self.subjects}: there are no folders sub-*; a BIDS or CAPS tree is expected")
        self._derivatives: dict[str, Tree] = {}

    def _walk(self) -> Iterator[tuple[Visit, list[VisitFile]]]:
        for subject in _folders(self.subjects, "sub-"):
            sessions = _folders(subject.path, "ses-")
            for session in sessions:
                yield Visit(subject.name, session.name), list(_files(session.path))
            if not sessions:
                yield Visit(subject.name, ONLY_SESSION), list(_files(subject.path))

    def derivative(self, pipeline: str) -> Tree:
        """The tree `derivatives/<pipeline>`, or this tree for an empty name."""
        if not pipeline:
            return self
        if pipeline not in self._derivatives:
            folder = self.root / "derivatives" / pipeline
            if not folder.is_dir():
                there = sorted(path.name for path in (self.root / "derivatives").glob("*") if path.is_dir())
                raise DataError(f"{folder}: there is no such derivative; there are: {', '.join(there) or 'none'}")
            self._derivatives[pipeline] = Tree(folder)
        return self._derivatives[pipeline]

    def find(self, kind: FileType) -> tuple[dict[Visit, str], dict[Visit, str]]:
        """The single file of this type for every visit, and the problem of visits with several matching files."""
        found: dict[Visit, str] = {}
        ambiguous: dict[Visit, str] = {}
        for visit, files in self.derivative(kind.pipeline).files.items():
            fitting = [file for file in files if kind.matches(file.folder, file.name)]
            if len(fitting) > 1:
                names = ", ".join(sorted(file.name for file in fitting))
                ambiguous[visit] = f"{visit}: {len(fitting)} files fit {kind.describe()}: {names}; tell them apart"
            elif fitting:
                found[visit] = fitting[0].path
        return found, ambiguous

    @cached_property
    def participants(self) -> pd.DataFrame | None:
        """`participants.tsv` with its column `participant_id` (text, with `sub-`), or None."""
        path = self.root / "participants.tsv"
        if not path.is_file():
            return None
        table = read_tsv(path, ["participant_id"])
        if repeated := table.loc[table["participant_id"].duplicated(), "participant_id"].tolist():
            raise DataError(f"{path}: {len(repeated)} participants have several rows, such as {repeated[0]}")
        return table

    @cached_property
    def sessions(self) -> pd.DataFrame | None:
        """`sessions.tsv` and the `sub-*_sessions.tsv` of participants, with the columns of `KEYS`, or None."""
        tables = []
        if (path := self.root / "sessions.tsv").is_file():
            tables.append(read_tsv(path, KEYS))
        tables += self._own_sessions()
        if not tables:
            return None
        table = pd.concat(tables, ignore_index=True)
        repeated = table[table.duplicated(KEYS)]
        if len(repeated):
            first = Visit(*repeated[KEYS].iloc[0])
            raise DataError(f"{self.root}: {len(repeated)} sessions have several rows, such as {first}")
        return table

    def _own_sessions(self) -> list[pd.DataFrame]:
        """The tables of participants: those with the same columns are read as one, which is many times as fast."""
        alike: dict[tuple[str, ...], tuple[Path, list[str], list[list[str]]]] = {}
        for participant in dict.fromkeys(visit.participant_id for visit in self.files):
            path = self.subjects / participant / f"{participant}_sessions.tsv"
            if not path.is_file():
                continue
            header, rows, lines = read_cells(path)
            if "session_id" not in header:
                raise DataError(f"{path}: there is no column 'session_id'; there are: {', '.join(header)}")
            # Some tables also have a participant_id: the folder's name is used.
            names = tuple("" if name == "participant_id" else name for name in header)
            _, places, cells = alike.setdefault(names, (path, [], []))
            places += [f"{path.name}:{line}" for line in lines]
            cells += [[participant, *row] for row in rows]
        tables = []
        for names, (first, places, cells) in alike.items():
            table = table_from_rows(["participant_id", *names], cells, places, str(first))
            where = f"{self.subjects}/sub-*/sub-*_sessions.tsv"
            tables.append(with_ids(infer_types(table, BIDS_MISSING, text=KEYS), KEYS, where))
        return tables

    def table(self) -> pd.DataFrame:
        """All visits of the folders or the tables, in order, with the columns of both tables.

        For a column of both tables, the session's value is used unless it is missing.
        """
        visits = set(self.files)
        if self.sessions is not None:
            visits |= {Visit(*keys) for keys in self.sessions[KEYS].itertuples(index=False)}
        ordered: list[Any] = sorted(visits, key=order)
        return self.join(pd.DataFrame(ordered, columns=KEYS))

    def join(self, visits: pd.DataFrame) -> pd.DataFrame:
        """`visits` (with the columns of `KEYS`) with the columns of the tables; its own columns are kept."""
        joined = visits
        for table, keys in ((self.sessions, KEYS), (self.participants, KEYS[:1])):
            if table is None:
                continue
            joined = joined.merge(table, how="left", on=keys, suffixes=("", "_of_tree"))
            for column in [str(name) for name in joined if str(name).endswith("_of_tree")]:
                name = column.removesuffix("_of_tree")
                joined[name] = joined[name].where(joined[name].notna(), joined.pop(column))
        return joined

    def unknown_participants(self) -> list[str]:
        """Participants of `participants.tsv` that have no folder."""
        if self.participants is None:
            return []
        there = {visit.participant_id for visit in self.files}
        return [participant for participant in self.participants["participant_id"] if participant not in there]


def _folders(folder: str | Path, prefix: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if entry.name.startswith(prefix) and entry.is_dir()]
    return sorted(found, key=lambda entry: _natural(entry.name))


def _files(folder: str, below: str = "") -> Iterator[VisitFile]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                yield from _files(entry.path, f"{below}/{entry.name}" if below else entry.name)
            else:
                yield VisitFile(below, entry.name, entry.path)


def _read_description(root: Path) -> dict[str, Any]:
    path = root / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file, which every BIDS or CAPS tree has") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(description, dict):
        raise DataError(f"{path}: a table of facts about the data set is expected")
    return description


def read_tsv(path: str | Path, needed: Iterable[str]) -> pd.DataFrame:
    """A table of BIDS: tab-separated, ids as text with their `sub-` and `ses-`, `n/a` as missing.

    Raises DataError when it cannot be read or lacks one of the columns `needed`.
    """
    return with_ids(infer_types(read_table(Path(path)), BIDS_MISSING, text=KEYS), needed, str(path))


def with_ids(table: pd.DataFrame, needed: Iterable[str], where: str) -> pd.DataFrame:
    """The table with complete ids in the columns `needed`; raises DataError naming rows by the table's index."""
    problems = []
    rows, table = table.index, table.reset_index(drop=True)
    for column in needed:
        if column not in table:
            raise DataError(f"{where}: there is no column {column!r}; there are: {', '.join(map(str, table))}")
    for column, prefix in zip(KEYS, ("sub-", "ses-"), strict=True):
        if column not in table:
            continue
        values = table[column].astype("string").str.strip()
        empty = values.isna() | values.isin(BIDS_MISSING)
        problems += [f"row {row}: no {column}" for row in rows[empty]]
        table[column] = [value if str(value).startswith(prefix) else f"{prefix}{value}" for value in values]
    if problems:
        raise DataError(f"{where}: rows without an id\n{first_lines(problems)}")
    return table
