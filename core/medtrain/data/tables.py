"""The one reader of tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medtrain.errors import DataError, UsageError

if TYPE_CHECKING:
    import pandas as pd

PARTICIPANT, SESSION = "participant_id", "session_id"


def read_rows(path: Path) -> pd.DataFrame:
    """A TSV (or, by its suffix, CSV) table with the ids as text; raises UsageError or DataError."""
    import pandas as pd

    text = {PARTICIPANT: str.strip, SESSION: str.strip}
    separator = "," if path.suffix.lower() == ".csv" else "\t"
    try:
        # Ids by converter: an id such as "NA" is no missing value, and 007 keeps its zeros.
        return pd.read_csv(path, sep=separator, converters=text, encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(f"{path}: not a table of {'commas' if separator == ',' else 'tabs'}: {error}") from None
