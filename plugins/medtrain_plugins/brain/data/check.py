"""What is wrong with the images of a tree, told without training on them."""

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
    """How many images can be used, and what is wrong with the others, one line for each.

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
