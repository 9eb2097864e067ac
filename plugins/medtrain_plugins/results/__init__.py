"""What comes after a training: evaluations, comparisons, reports, exports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtrain import hookimpl

if TYPE_CHECKING:
    from medtrain import Run, Section
    from medtrain.protocols import Check
    from medtrain.weights import Weights


class Results:
    """Writes reports, and reads and writes weights as plain state dicts."""

    @hookimpl
    def write_report(self, run: Run, folder: Path, sections: list[Section]) -> Path:
        """metrics.json, predictions, plots and report.html"""
        from medtrain_plugins.results.report import write_evaluation

        write_evaluation(folder, run, sections)
        return folder

    @hookimpl
    def import_weights(self, paths: list[Path]) -> Weights | None:
        """safetensors, or a plain state dict"""
        from medtrain.weights import Weights, read_state

        return Weights(read_state(paths[0])) if len(paths) == 1 else None

    @hookimpl
    def export(self, run: Run, format: str, path: Path, check: Check | None) -> dict[str, Any] | None:
        """safetensors, or a plain state dict"""
        from medtrain_plugins.results.export import write_plain

        return write_plain(run, format, path)
