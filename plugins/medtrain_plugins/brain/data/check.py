"""The problems of the images of a tree, without training on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medtrain_plugins.brain.data.caps import FileType
from medtrain_plugins.brain.data.dataset import BidsDataset


def check_tree(
    bids: str | Path,
    file_type: FileType | dict[str, Any] | str = "T1w",
    *,
    masks: FileType | dict[str, Any] | str | None = None,
    data: str | Path | None = None,
    label: str | None = None,
    canonical: bool = False,
    contents: bool = True,
) -> tuple[int, list[str]]:
    """The number of usable images, and the problem of each other one, one line each.

    contents: also decode every file: damage, voxels that are not finite, blank images, masks that are not whole numbers
    or empty. Arguments as for `BidsDataset`.
    """
    dataset = BidsDataset(
        bids,
        file_type,
        data=data,
        label=label,
        task="classification" if masks is None else "segmentation",
        masks=masks,
        exclude="skip",
        canonical=canonical,
    )
    problems: list[str] = list(dataset.about["excluded"])
    bad = [problem for row in range(len(dataset)) if (problem := dataset.look_at(row))] if contents else []
    return len(dataset) - len(bad), problems + bad
