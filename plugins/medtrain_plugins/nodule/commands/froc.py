"""`medtrain froc`: the score of a submission to LUNA16, or of any table of candidates like it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from medtrain_plugins.nodule.evaluation.evaluate import NoduleEvaluation

FILE = click.Path(path_type=Path)


@click.command()
@click.option("--annotations", required=True, type=FILE, help="CSV of the nodules: seriesuid, coordX..Z, diameter_mm.")
@click.option("--candidates", required=True, type=FILE, help="CSV of the marks: seriesuid, coordX..Z, probability.")
@click.option("--excluded", type=FILE, help="CSV of irrelevant findings: marks on them count neither way.")
@click.option("--series", type=FILE, help="The scans, one uid a line. Default: all scans that the tables name.")
@click.option(
    "--protocol",
    type=click.Choice(["luna16", "fixed_radius"]),
    default="luna16",
    show_default=True,
    help="A hit lies within the nodule's radius, or within --max-distance of any nodule.",
)
@click.option(
    "--max-distance", type=click.FloatRange(min=0, min_open=True), help="Radius of fixed_radius in mm. [default: 10]"
)
@click.option(
    "--max-marks",
    type=click.IntRange(min=1),
    help="Most marks per scan: of more, those strictly more suspicious than the next one are kept. Default: all.",
)
@click.option(
    "--bootstrap", type=click.IntRange(min=0), default=1000, show_default=True, help="Resamples of the scans; 0: none."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the bootstrap.")
@click.option("--out", type=FILE, help="Folder for evaluation.json, cases.csv (TP, FP, FN) and report.html.")
@click.option("--json", "as_json", is_flag=True, help="Last line of standard output: one JSON object.")
def froc(
    annotations: Path,
    candidates: Path,
    excluded: Path | None,
    series: Path | None,
    protocol: Literal["luna16", "fixed_radius"],
    max_distance: float | None,
    max_marks: int | None,
    bootstrap: int,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Score marks of lung nodules: sensitivity at 1/8 to 8 false positives per scan, and their mean (CPM).

    The tables are those of the LUNA16 challenge: world coordinates in mm. Rows of scans that are not in --series are
    reported and not scored.
    """
    import json

    from medtrain.rundir import strict

    from medtrain_plugins.nodule.annotations.tables import read_findings, read_series
    from medtrain_plugins.nodule.evaluation.evaluate import EvaluationSettings, evaluate_detections

    if max_distance is not None and protocol != "fixed_radius":
        raise click.UsageError("--max-distance belongs to --protocol fixed_radius; luna16 takes each nodule's radius")
    scans, notes = read_series(series) if series is not None else (None, [])
    evaluation = evaluate_detections(
        read_findings(annotations, "annotations"),
        read_findings(candidates, "candidates"),
        read_findings(excluded, "excluded") if excluded is not None else None,
        scans,
        EvaluationSettings(protocol, max_distance or 10.0, max_marks, bootstrap, seed),
    )
    evaluation.notes[:0] = notes
    files = {}
    if out is not None:
        from medtrain_plugins.nodule.evaluation.report import write_evaluation

        files = write_evaluation(out, evaluation, f"FROC: {candidates.name}")
    _show(evaluation)
    for path in files.values():
        click.echo(path)
    if as_json:
        told = {"status": "completed", "protocol": protocol, **evaluation.summary(), "files": files}
        click.echo(json.dumps(strict(told), allow_nan=False))


def _show(evaluation: NoduleEvaluation) -> None:
    counts = evaluation.counts
    click.echo(
        f"{counts['scans']} scans, {counts['nodules']} nodules, {counts['candidates']} candidates: "
        f"{counts['true_positives']} nodules found, {counts['false_positives']} false positives, "
        f"{counts['duplicates']} further hits, {counts['ignored']} on irrelevant findings"
    )
    click.echo("\nFP/scan  sensitivity")
    for rate, value in evaluation.sensitivity.items():
        click.echo(f"{rate:>7}  {value:.4f}{_limits(evaluation.intervals.get(rate))}")
    click.echo(f"    CPM  {evaluation.cpm:.4f}{_limits(evaluation.intervals.get('cpm'))}")
    for note in evaluation.notes:
        click.echo(f"Note: {note}")


def _limits(limits: tuple[float, float] | None) -> str:
    return "" if limits is None else f"  ({limits[0]:.4f} to {limits[1]:.4f})"
