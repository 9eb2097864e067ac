"""The files of a ClinicaDL 2.0 MAPS: each value is read once; damaged files and unused values are reported by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from medtrain.data import CSV_MISSING, infer_types, read_table
from medtrain.errors import MedtrainError

_EMPTY: tuple[Any, ...] = (None, False, {}, [], "")


@dataclass
class ImportReport:
    """The report of an import. problems: damaged or missing files. unplaced: settings without a counterpart."""

    problems: list[str] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)

    def tell(self, lines: list[str], line: str) -> None:
        """Adds a line, unless it is there already."""
        if line not in lines:
            lines.append(line)


class Fields:
    """The values of a JSON file, each read once; `rest` reports those that were not read."""

    def __init__(self, values: Mapping[str, Any], where: str, found: ImportReport) -> None:
        self.values = {key: value for key, value in values.items() if key != "name_"}
        self.name, self.where, self.found = str(values.get("name_", "")), where, found

    def take(self, key: str, default: Any = None) -> Any:
        """A value, or the default if it is missing or null."""
        value = self.values.pop(key, None)
        return default if value is None else value

    def part(self, key: str) -> Fields:
        """A nested object, reported under the same file name."""
        value = self.values.pop(key, None)
        return Fields(value if isinstance(value, dict) else {}, f"{self.where}: {key}", self.found)

    def rest(self) -> None:
        """Reports every value that was not read and is not empty."""
        for key, value in self.values.items():
            if value not in _EMPTY:
                self.found.tell(self.found.unplaced, f"{self.where}: {key} = {json.dumps(value)[:120]}")


class Files:
    """The JSON files and tables in a folder. found: the report of their problems."""

    def __init__(self, maps: Path) -> None:
        self.maps, self.found = maps, ImportReport()

    def json(self, name: str, optional: bool = False) -> dict[str, Any]:
        path = self.maps / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if not optional:
                self.found.tell(self.found.problems, f"{name}: missing")
            return {}
        except (OSError, ValueError) as error:
            self.found.tell(self.found.problems, f"{name}: not JSON: {error}")
            return {}
        if not isinstance(value, dict):
            self.found.tell(self.found.problems, f"{name}: not a JSON object")
            return {}
        return value

    def fields(self, name: str) -> Fields:
        return Fields(self.json(name), name, self.found)

    def table(self, name: str, columns: tuple[str, ...] = (), optional: bool = False) -> pd.DataFrame | None:
        """A table with these columns, or None."""
        path = self.maps / name
        if not path.is_file():
            if not optional:
                self.found.tell(self.found.problems, f"{name}: missing")
            return None
        try:
            rows = infer_types(read_table(path), CSV_MISSING, text=("participant_id", "session_id"))
            rows = rows.reset_index(drop=True)
        except MedtrainError as error:
            self.found.tell(self.found.problems, f"{name}: {str(error).removeprefix(f'{path}: ')}")
            return None
        if missing := [column for column in columns if column not in rows]:
            self.found.tell(self.found.problems, f"{name}: no column {missing[0]!r}")
            return None
        for column in rows.columns.difference(["participant_id", "session_id"]):
            if column in columns or name.endswith("aggregated.tsv") or "logs/" in name:
                rows[column] = pd.to_numeric(rows[column], errors="coerce")
        return rows
