"""The names of the signs, from the table that comes with KArSL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from medtrain.errors import DataError

from medtrain_plugins.sign.data.landmarks import MAX_SIGN

FILE = "KARSL-502_Labels.json"


class Name(NamedTuple):
    """The meaning of a sign. Arabic names are unique, English ones are not: do not identify signs by them."""

    arabic: str
    english: str


def find_labels(folder: Path) -> Path | None:
    """The table of names in a data folder or beside it."""
    return next((path for path in (folder / FILE, folder.parent / FILE) if path.is_file()), None)


def read_labels(path: Path) -> dict[int, Name]:
    """Sign number (from 1) -> name. Raises DataError naming the problem of the file."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        arabic, english = table["AR_WORDS"], table["EN_WORDS"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read as a table of names ({type(error).__name__}: {error}); a JSON object with the "
            "lists AR_WORDS and EN_WORDS is expected"
        ) from None
    if len(arabic) != MAX_SIGN or len(english) != MAX_SIGN:
        raise DataError(
            f"{path}: has {len(arabic)} Arabic and {len(english)} English names; there are {MAX_SIGN} signs"
        )
    # Names of numerals are numbers in the file.
    pairs = zip(map(str, arabic), map(str, english), strict=True)
    return {sign: Name(*pair) for sign, pair in enumerate(pairs, 1)}
