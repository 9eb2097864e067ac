"""Run directories: opening them, and the files of an evaluation."""

from __future__ import annotations

from medtrain.rundir.directory import Maps, SplitFolder
from medtrain.rundir.evaluation_files import METRICS, PREDICTIONS, REPORT, describe, predictions, read_predictions
from medtrain.rundir.files import new_folder, read_json, replace_file, sha256, strict, write_json, write_text

__all__ = [
    "METRICS",
    "PREDICTIONS",
    "REPORT",
    "Maps",
    "SplitFolder",
    "describe",
    "new_folder",
    "predictions",
    "read_json",
    "read_predictions",
    "replace_file",
    "sha256",
    "strict",
    "write_json",
    "write_text",
]
