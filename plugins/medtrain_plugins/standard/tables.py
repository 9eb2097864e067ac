"""The one reader of tables: every cell as text, nothing guessed, and each error names file and line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError, first_lines

if TYPE_CHECKING:
    import pandas as pd


# What stands for a missing value. BIDS allows `n/a` only: there "NA" may be a site, and "None" a diagnosis.
BIDS_MISSING = ("", "n/a")
CSV_MISSING = (*BIDS_MISSING, "N/A", "NA", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None")

_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_CODE = re.compile(r"[+-]?(0\d+|\d{16,})")  # digits that a number would lose: leading zeros, more than a float holds


class Cells(NamedTuple):
    """A table as text. lines: the line of the file on which each row begins; the header is no row."""

    header: list[str]
    rows: list[list[str]]
    lines: list[int]


def read_cells(path: Path) -> Cells:
    """The cells of a table, without the spaces around them and without empty rows; an empty file has no header.

    UTF-8, or UTF-16 with its mark; any line ends. A file named `.tsv` has tabs and no quotes, as BIDS has it, unless
    its whole header is quoted. In others, the separator is the one the header has most of, and a quote at the start of
    a cell must be closed at its end. Separators at the ends of lines make no columns. Raises DataError.
    """
    text = _text(path)
    first = text.lstrip("\n").partition("\n")[0]
    separator, quotes = _format(path, first)
    try:
        header, rows, lines = _rows(path, text, separator, quotes)
    except csv.Error as error:
        raise DataError(f"{path}: not a table of {_NAMES[separator]}: {error}") from None
    while header and not header[-1] and not any(any(row[len(header) - 1 :]) for row in rows):
        header.pop()
    width = len(header)
    ragged = []
    for number, row in enumerate(rows):
        if len(row) > width and not any(row[width:]):
            del row[width:]
        if len(row) != width:
            ragged.append(f"{path.name}:{lines[number]}: {len(row)} fields, the header has {width}")
    if ragged:
        raise DataError(f"{path}: {len(ragged)} unusable rows\n{first_lines(ragged)}")
    return Cells(header, rows, lines)


def read_table(path: Path) -> pd.DataFrame:
    """The same as a DataFrame of text, "" for empty cells; its index is the line of each row. Raises DataError."""
    header, rows, lines = read_cells(path)
    if not header:
        raise DataError(f"{path}: not a table of {_NAMES[_format(path, '')[0]]}: it is empty")
    return table_from_rows(header, rows, lines, str(path))


def table_from_rows(
    header: Sequence[str], rows: Sequence[Sequence[str]], index: Sequence[Any], where: str
) -> pd.DataFrame:
    """Rows as a DataFrame; DataError when two columns have one name. Columns without a name are numbered."""
    import pandas as pd

    names = [name or f"Unnamed: {number}" for number, name in enumerate(header)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{where}: the header names {', '.join(map(repr, twice))} more than once; rename all but one")
    columns = {name: np.array([row[i] for row in rows], dtype=object) for i, name in enumerate(names)}
    return pd.DataFrame(columns, index=pd.Index(index))


def missing_words(path: Path) -> tuple[str, ...]:
    """What stands for a missing value in a file, by its format."""
    return BIDS_MISSING if path.suffix.lower() == ".tsv" else CSV_MISSING


def infer_types(table: pd.DataFrame, missing: Collection[str], text: Collection[str] = ()) -> pd.DataFrame:
    """The table with NaN for `missing` and with numbers where a column holds nothing else.

    text: columns that stay as they are. Codes that a number would change (007, or of more than 15 digits) are text.
    """
    import pandas as pd

    typed = {}
    for name in table:
        cells = table[name]
        if name in text:
            typed[name] = cells
            continue
        absent = cells.isin(list(missing))
        present = cells[~absent].tolist()
        if present and all(map(_NUMBER.fullmatch, present)) and not any(map(_CODE.fullmatch, present)):
            values, _ = parse_numbers(cells.where(~absent, "").tolist(), empty=True)
            whole = not absent.any() and all(cell.lstrip("+-").isdecimal() for cell in present)
            typed[name] = pd.Series(values.astype(np.int64) if whole else values, table.index)
        else:
            typed[name] = cells.where(~absent, np.nan)
    return pd.DataFrame(typed, index=table.index)


def parse_numbers(cells: Sequence[str], empty: bool = False) -> tuple[npt.NDArray[np.float64], list[int]]:
    """Cells as float64, each exactly as Python reads it, and which of them are no numbers (these are NaN).

    empty: an empty cell is NaN and no mistake. "nan" and "inf" are read as such.
    """
    values, bad = np.full(len(cells), np.nan), []
    for index, cell in enumerate(cells):
        try:
            values[index] = float(cell)
        except ValueError:
            if not (empty and not cell.strip()):
                bad.append(index)
            continue
        if "_" in cell:  # Python reads 1_0 as 10
            values[index] = np.nan
            bad.append(index)
    return values, bad


def _text(path: Path) -> str:
    """The text of a file, with \\n for every line end."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        kind = "UTF-16" if wide else "UTF-8"
        raise DataError(f"{path}: is not {kind} text (line {line}, byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path}: is not text (a zero byte in line {text.count(chr(10), 0, text.index(chr(0))) + 1})")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _format(path: Path, header: str) -> tuple[str, bool]:
    """The separator, and whether quotes have a meaning."""
    if path.suffix.lower() == ".tsv":
        names = header.strip().split("\t")
        return "\t", all(len(name) > 1 and name[0] == name[-1] == '"' for name in names)  # as R writes them
    bare = re.sub(r'"[^"]*"', "", header)
    return max(",;\t", key=bare.count), True


def _rows(path: Path, text: str, separator: str, quotes: bool) -> Cells:
    found = Cells([], [], [])
    known: dict[str, str] = {}  # equal cells are one text: a column of codes takes the room of its codes
    reader = csv.reader(
        io.StringIO(text, newline="\n"),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=True,
    )
    begins = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return found
        except csv.Error as error:
            raise csv.Error(
                f"{path.name}:{begins}: a cell begins with a quote that is not closed at its end ({error})"
                if quotes
                else f"{path.name}:{begins}: {error}"
            ) from None
        cells = [known.setdefault(cell, cell) for cell in map(str.strip, row)]
        if any(cells):
            if not found.header:
                found.header.extend(cells)
            else:
                found.rows.append(cells)
                found.lines.append(begins)
        begins = reader.line_num + 1
