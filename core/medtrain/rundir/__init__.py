"""Run directories: opening them, and the files of an evaluation."""

from __future__ import annotations

from medtrain.rundir.checkpoint import read_manifest
from medtrain.rundir.directory import Maps, SplitFolder, check_creatable, default_path
from medtrain.rundir.evaluation_files import (
    METRICS,
    PLOTS,
    PREDICTIONS,
    REPORT,
    describe,
    predictions,
    predictions_of,
    read_predictions,
)
from medtrain.rundir.files import new_folder, read_json, replace_file, sha256, sha256_of, strict, write_json, write_text
from medtrain.rundir.resolve import find_checkpoint, locate

__all__ = [
    "METRICS", "PLOTS", "PREDICTIONS", "REPORT", "Maps", "SplitFolder", "check_creatable", "default_path",
    "describe", "find_checkpoint", "locate", "new_folder", "predictions", "predictions_of", "read_json",
    "read_manifest", "read_predictions", "replace_file", "sha256", "sha256_of", "strict", "write_json", "write_text",
]  # fmt: skip
