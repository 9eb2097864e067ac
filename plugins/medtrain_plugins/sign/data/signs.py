"""The sign of each class and its names, as recorded by the run."""

from __future__ import annotations

from typing import Any, NamedTuple

from medtrain import Run

from medtrain_plugins.sign.options import KArSLOptions


class Sign(NamedTuple):
    """One class. The names are empty if the run had no table of names."""

    number: int
    arabic: str = ""
    english: str = ""


def signs_of(run: Run, options: KArSLOptions) -> list[Sign]:
    """The sign of every class, in the order of classes."""
    recorded: list[dict[str, Any]] = run.maps.membership()["about"].get("signs", []) if run.maps else []
    if not recorded:
        return [Sign(number) for number in options.sign_numbers]
    return [Sign(entry["sign"], entry.get("arabic", ""), entry.get("english", "")) for entry in recorded]
