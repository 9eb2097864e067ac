"""What comes after a training: evaluations, comparisons, reports, exports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medtrain import hookimpl

if TYPE_CHECKING:
    from medtrain import Run, Section


class Results:
    """Writes the report of an evaluation."""

    @hookimpl
    def write_report(self, run: Run, folder: Path, sections: list[Section]) -> Path:
        """metrics.json, predictions, plots and report.html"""
        from medtrain_plugins.results.report import write_evaluation

        write_evaluation(folder, run, sections)
        return folder
