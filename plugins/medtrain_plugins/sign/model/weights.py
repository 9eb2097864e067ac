"""Checkpoints of the published trainer."""

from __future__ import annotations

import re
from pathlib import Path

from medtrain.protocols import Weights
from medtrain.weights import read_state

# checkpoint_Nov21_02-59-46-signs_502_s_4_2/30.pth
_NAME = re.compile(r"signs_(\d+)_([tsml]_\d+_\d+)")


def read_published(paths: list[Path]) -> Weights | None:
    """The model of a `.pth` with the keys model, optimizer and scheduler; None for several files and for others.

    The file does not have the number of signs and the size: the options come from its path, if that has the pattern
    `signs_<number>_<size>`, else from the caller.
    """
    if len(paths) > 1 or paths[0].suffix != ".pth":
        return None
    weights = Weights(read_state(paths[0]))
    if (named := _NAME.search(str(paths[0]))) is not None:
        weights.options = {"signs": f"1-{named[1]}", "model_size": named[2]}
        weights.notes = [f"Taken from its path: signs 1 to {named[1]} (the last may be another), size {named[2]}."]
    return weights
