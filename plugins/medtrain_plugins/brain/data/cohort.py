"""Which of the requested sessions can be used, and the problems of the others, before any image is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from medtrain.errors import DataError, nearest

from medtrain_plugins.brain.data.bids import KEYS, Tree, Visit
from medtrain_plugins.brain.data.caps import FileType
from medtrain_plugins.brain.data.volumes import Header, is_nifti, read_header, same_place


class Cohort:
    """Which of the requested sessions can be used, and why not the others; all problems are collected.

    rows: the requested sessions. usable: those without a problem, with their `paths`, `mask_paths` and `headers`.
    problems: by session, or by participant for one without sessions. everyone: all of participants.tsv must be there.
    alike: images must have one shape.
    """

    def __init__(
        self,
        tree: Tree,
        kind: FileType,
        mask_kind: FileType | None,
        rows: pd.DataFrame,
        needed: Sequence[str],
        *,
        everyone: bool,
        alike: bool,
    ) -> None:
        for name in needed:
            if name not in rows:
                raise DataError(
                    f"{tree.root}: no table has the column {name!r}{nearest(name, map(str, rows))}; there are: "
                    + ", ".join(map(str, rows))
                )
        self.rows = rows
        self.problems: dict[str, str] = {}
        images, several = tree.find(kind)
        masks, several_masks = tree.find(mask_kind) if mask_kind else ({}, {})
        headers: dict[Visit, Header] = {}
        visits = [Visit(*keys) for keys in rows[KEYS].itertuples(index=False)]
        incomplete = rows[list(needed)].isna()
        for number, visit in enumerate(visits):
            without = [name for name in needed if incomplete[name].iloc[number]]
            try:
                if visit in several or visit in several_masks:
                    raise DataError(several.get(visit) or several_masks[visit])
                if visit not in images:
                    raise DataError(f"{visit}: " + _missing(tree, kind, visit))
                headers[visit] = _check_image(images[visit], kind.dimensions)
                if mask_kind is not None:
                    if visit not in masks:
                        raise DataError(f"{visit}: " + _missing(tree, mask_kind, visit))
                    _check_mask(masks[visit], headers[visit], images[visit])
                if without:
                    raise DataError(f"{visit}: no value of {', '.join(without)} in the tables")
            except DataError as error:
                self.problems[str(visit)] = str(error)
        if alike:
            self._check_shapes(headers, kind.dimensions, images)
        for participant in tree.unknown_participants() if everyone else ():
            if participant not in set(rows["participant_id"]):
                self.problems[participant] = f"{participant}: named in participants.tsv, but there is no such folder"
        kept = [str(visit) not in self.problems for visit in visits]
        self.usable = rows[kept].reset_index(drop=True)
        chosen = [visit for visit, keep in zip(visits, kept, strict=True) if keep]
        self.paths = [images[visit] for visit in chosen]
        self.mask_paths = [masks[visit] for visit in chosen] if mask_kind else []
        self.headers = [headers[visit] for visit in chosen]

    def _check_shapes(self, headers: dict[Visit, Header], dimensions: int, images: dict[Visit, str]) -> None:
        """Images of a batch must have one shape: images unlike most others are a problem, unless transforms follow."""
        shapes = {v: h.spatial(dimensions) for v, h in headers.items() if str(v) not in self.problems}
        if not shapes:
            return
        usual = Counter(shapes.values()).most_common(1)[0][0]
        for visit, shape in shapes.items():
            if shape != usual:
                self.problems[str(visit)] = (
                    f"{images[visit]}: the image has {times(shape)} voxels, most have {times(usual)}; "
                    "resize them, for example by the transform ResizeWithPadOrCrop"
                )


def _missing(tree: Tree, kind: FileType, visit: Visit) -> str:
    if visit in tree.derivative(kind.pipeline).files:
        return f"no file {kind.describe()} in this session"
    return "there is no folder of this session"


def _check_image(path: str, dimensions: int) -> Header:
    if not is_nifti(path):
        raise DataError(f"{path}: not a .nii or .nii.gz file; convert it")
    header = read_header(path)
    if problem := header.problem(dimensions):
        raise DataError(f"{path}: {problem}")
    return header


def _check_mask(path: str, image: Header, image_path: str) -> None:
    header = _check_image(path, 3)
    shape, wanted = header.spatial(3), image.shape[:3]
    if shape != wanted:
        raise DataError(f"{path}: the mask has {times(shape)} voxels, its image {times(wanted)}; resample it")
    if not same_place(header.affine, image.affine):
        raise DataError(f"{path}: the mask's affine differs from that of {Path(image_path).name}; resample it")


def times(shape: Sequence[int]) -> str:
    """Sizes as `12 x 12 x 14`."""
    return " x ".join(map(str, shape))
