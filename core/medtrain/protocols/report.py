"""One part of a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass
class Section:
    """One part of a report.

    title: heading. text: a paragraph in plain text. tables: caption -> table. figures: file stem (letters, digits,
    `-`, `_`) -> matplotlib figure; each is also written as `plots/<stem>.png`.
    """

    title: str
    text: str = ""
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
