"""The header of a DICOM file: whether it is a usable mammogram, and its side, view and date.

Nothing is guessed: a file with missing or contradictory entries is refused with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING

from medtrain_plugins.imaging import pixels
from medtrain_plugins.imaging.pixels import Unfit
from medtrain_plugins.mammography.cohort.layouts import LATERALITIES, VIEWS

if TYPE_CHECKING:
    from pydicom import Dataset

_TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"
_INTENTS = {  # the storage classes of digital mammograms start with this
    "1.2.840.10008.5.1.4.1.1.1.2": "FOR PRESENTATION",
    "1.2.840.10008.5.1.4.1.1.1.2.1": "FOR PROCESSING",
}
# Codes of views and view modifiers: SNOMED CT, and SNOMED RT of older files.
_VIEW_CODES = {"399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO"}
_IMPLANT_DISPLACED = {"399209000", "R-102D5"}
_DATE = re.compile(r"(\d{4})[-./]?(\d\d)[-./]?(\d\d)([ T].*)?")


class Refusal(Unfit):
    """A file that cannot be used; arguments: kind and reason."""


@contextmanager
def reading() -> Iterator[None]:
    """Turns any error of a DICOM file into a Refusal."""
    try:
        with pixels.reading():
            yield
    except Refusal:
        raise
    except Unfit as problem:
        raise Refusal("unreadable file", str(problem)) from None


def refuse_kind(dataset: Dataset, *, implants: bool, unstated_intent: bool) -> None:
    """Raises Refusal unless the file is one grayscale image of a whole breast for presentation.

    implants: accept breasts with implants. unstated_intent: accept images without a presentation intent.
    """
    modality = code(dataset, "Modality")
    if modality != "MG":
        raise Refusal("not a mammogram", f"Modality is {modality or 'missing'}, not MG")
    kinds = code(dataset, "ImageType").split("\\")
    storage = code(dataset, "SOPClassUID")
    if storage == _TOMOSYNTHESIS or any(kind.startswith("TOMO") or kind == "GENERATED_2D" for kind in kinds):
        raise Refusal("tomosynthesis", f"ImageType is {'/'.join(kinds) or 'missing'}, SOPClassUID {storage}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise Refusal("multi-frame", f"{frames} frames")
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise Refusal("no pixel data", "the header has no Rows and Columns")
    photometric = code(dataset, "PhotometricInterpretation")
    if dataset.get("SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise Refusal("not grayscale", f"PhotometricInterpretation is {photometric or 'missing'}")
    intent = code(dataset, "PresentationIntentType") or _INTENTS.get(storage, "")
    if intent != "FOR PRESENTATION" and (intent or not unstated_intent):
        raise Refusal("not for presentation", f"PresentationIntentType is {intent or 'missing'}")
    if code(dataset, "BreastImplantPresent") == "YES" and not implants:
        raise Refusal("implant", "BreastImplantPresent is YES")
    if code(dataset, "PartialView") == "YES":
        raise Refusal("special view", "PartialView is YES")


def read_laterality(dataset: Dataset) -> str:
    """L or R. Raises Refusal."""
    stated = code(dataset, "ImageLaterality") or code(dataset, "Laterality")
    if stated not in LATERALITIES:
        raise Refusal("unknown laterality", f"ImageLaterality is {stated or 'missing'}, not L or R")
    return LATERALITIES[stated]


def read_view(dataset: Dataset, *, implants: bool) -> str:
    """CC or MLO. Raises Refusal for other views, and for modified views (of a part, or shifted)."""
    items = list(dataset.get("ViewCodeSequence") or [])
    coded = {_VIEW_CODES[value] for item in items if (value := code(item, "CodeValue")) in _VIEW_CODES}
    stated = code(dataset, "ViewPosition")
    if len(coded) > 1 or (stated and coded and {stated} != coded):
        raise Refusal("unknown view", f"ViewPosition is {stated or 'missing'}, the view code {' and '.join(coded)}")
    view = stated or next(iter(coded), "")
    if view not in VIEWS:
        raise Refusal("unknown view", f"ViewPosition is {view or 'missing'}, not CC or MLO")
    modifiers = [*(dataset.get("ViewModifierCodeSequence") or [])]
    modifiers += [modifier for item in items for modifier in item.get("ViewModifierCodeSequence") or []]
    for modifier in modifiers:
        value = code(modifier, "CodeValue")
        meaning = text(modifier, "CodeMeaning") or value
        if value not in _IMPLANT_DISPLACED:
            raise Refusal("special view", f"{view} with {meaning}")
        if not implants:
            raise Refusal("implant", f"{view} with {meaning}")
    return VIEWS[view]


def read_date(value: str) -> str | None:
    """YYYY-MM-DD from YYYY-MM-DD, YYYYMMDD or YYYY.MM.DD, with or without a time; None for anything else."""
    match = _DATE.fullmatch(value)
    try:
        return date(*map(int, match.groups()[:3])).isoformat() if match else None
    except ValueError:
        return None


def text(dataset: Dataset, keyword: str) -> str:
    """A header value as text, "" where there is none; several are joined by a backslash as in the file."""
    value = dataset.get(keyword)
    if value is None:
        return ""
    return str(
        value if isinstance(value, str) or not hasattr(value, "__iter__") else "\\".join(map(str, value))
    ).strip()


def code(dataset: Dataset, keyword: str) -> str:
    """A coded header value: as text, in upper case."""
    return text(dataset, keyword).upper()
