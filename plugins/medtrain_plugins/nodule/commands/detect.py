"""`medtrain detect nodule`: the nodules of one scan, as files; `medtrain calibrate pivot`: calibrated scores."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

FILE = click.Path(path_type=Path)
NAME = "pivot"
TTA = ("flip_x", "flip_y", "flip_z", "rotate_90")


@click.command()
@click.argument("run", type=FILE)
@click.argument("input", type=FILE)
@click.option("--out", required=True, type=FILE, help="Folder for JSON, CSV, NIfTI images and pictures.")
@click.option("--split", default=0, show_default=True, type=click.IntRange(min=0), help="Which split of the run.")
@click.option("--checkpoint", help="A checkpoint's name; default: the best, else the last.")
@click.option("--series", help="SeriesInstanceUID, where a folder holds several.")
@click.option(
    "--tta",
    multiple=True,
    type=click.Choice([*TTA, "all", "none"]),
    help="Average over views of the scan (repeatable). Default: as the run is configured.",
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="Least score of a candidate.")
@click.option("--calibration", type=FILE, help="JSON file of `medtrain calibrate pivot`.")
@click.option("--lungs-only", is_flag=True, help="Leave out windows without lung.")
@click.option("--deidentify", is_flag=True, help="Random identifiers instead of the scan's, and no paths.")
@click.option("--panels", default=10, show_default=True, type=click.IntRange(min=0), help="Pictured candidates.")
@click.option("--no-heatmap", is_flag=True, help="Do not write the network's map.")
@click.option("--device", help="auto, cpu, cuda or cuda:N; default: as the run is configured.")
@click.option("--json", "as_json", is_flag=True, help="Last line of standard output: one JSON object.")
def detect(
    run: Path,
    input: Path,
    out: Path,
    split: int,
    checkpoint: str | None,
    series: str | None,
    tta: tuple[str, ...],
    threshold: float | None,
    calibration: Path | None,
    lungs_only: bool,
    deidentify: bool,
    panels: int,
    no_heatmap: bool,
    device: str | None,
    as_json: bool,
) -> None:
    """Find the nodules of a scan with a trained run, and write them down.

    INPUT: a folder of one DICOM series, a zip file of one, NIfTI, MHD, MHA or NRRD. `medtrain predict` gives only the
    table.
    """
    import json

    from medtrain import Trainer
    from medtrain.errors import DataError, UsageError

    from medtrain_plugins.nodule.inference.detections import write_detections
    from medtrain_plugins.nodule.inference.predict import DetectedScan, Request

    if not input.exists():
        raise DataError(f"{input}: there is no such file or folder")
    if len(tta) > 1 and {"all", "none"} & set(tta):
        raise UsageError("--tta: 'all' and 'none' go with nothing else")
    _refuse_others(run)
    changes: dict[str, object] = {}
    if tta:
        changes["tta"] = {"all": list(TTA), "none": []}.get(tta[0], list(tta))
    if threshold is not None:
        changes["threshold"] = threshold
    if calibration is not None:
        changes["calibration"] = str(calibration)
    if lungs_only:
        changes["lungs_only"] = True
    # JSON's numbers, texts, booleans and lists are valid TOML.
    assignments = [f"{NAME}.inference.{key}={json.dumps(value)}" for key, value in changes.items()]
    if device is not None:
        assignments.append(f"computational.device={device}")
    trainer = Trainer.from_maps(run, assignments=assignments)
    found = trainer.predict(Request(input, series), split_idx=split, checkpoint=checkpoint)
    if not isinstance(found, DetectedScan):
        raise UsageError(f"{run}: another plugin than {NAME} answers for this run; use `medtrain predict`")
    paths = write_detections(found, out, deidentify=deidentify, panels=panels, heatmap=not no_heatmap)
    if as_json:
        click.echo(
            json.dumps(
                {"status": "completed", "out": str(out), "candidates": len(found.findings), "seconds": found.seconds}
            )
        )
        return
    click.echo(f"{'':4}  score  diameter  x, y, z in mm (LPS)")
    for finding in found.findings[:20]:
        diameter = finding.candidate.diameter_mm
        size = "       -" if diameter is None else f"{diameter:5.1f} mm"
        place = ", ".join(f"{value:.1f}" for value in finding.world)
        click.echo(f"{finding.number:4d}  {finding.candidate.confidence:5.3f}  {size}  {place}")
    if len(found.findings) > 20:
        click.echo(f"and {len(found.findings) - 20} more")
    click.echo(f"\n{len(found.findings)} candidates, {len(paths)} files in {out}")


@click.command()
@click.argument("run", type=FILE)
@click.option("--group", default="validation", show_default=True, help="Group of the run's scans to fit on.")
@click.option(
    "--method",
    type=click.Choice(["temperature", "platt", "isotonic"]),
    default="platt",
    show_default=True,
    help="platt is a temperature with a bias; isotonic needs hundreds of nodules.",
)
@click.option("--split", default=0, show_default=True, type=click.IntRange(min=0), help="Which split of the run.")
@click.option("--checkpoint", help="A checkpoint's name; default: the best, else the last.")
@click.option(
    "--out", type=FILE, help="Default: calibration.json in the split's folder, where predictions look for it."
)
def calibrate(
    run: Path,
    group: str,
    method: Literal["temperature", "platt", "isotonic"],
    split: int,
    checkpoint: str | None,
    out: Path | None,
) -> None:
    """Fit what the scores of a run's candidates mean: how likely each is a nodule.

    Candidates on nodules are held against false ones, in scans that the network was not trained on.
    """
    from medtrain import Trainer
    from medtrain.errors import UsageError
    from medtrain.rundir import Maps

    from medtrain_plugins.common.calibration import log_loss, logit
    from medtrain_plugins.nodule.evaluation.matching import Outcome
    from medtrain_plugins.nodule.evaluation.rows import evaluate_rows
    from medtrain_plugins.nodule.inference.calibration import fit
    from medtrain_plugins.nodule.inference.predict import CALIBRATION

    _refuse_others(run)
    if group == "train":
        raise UsageError("--group train: scores of scans the network was trained on say nothing about those of others")
    plain = [f"{NAME}.inference.calibration=", f"{NAME}.inference.threshold=0.0"]
    trainer = Trainer.from_maps(run, assignments=plain)
    rows = trainer.evaluate(group, split_idx=split, checkpoint=checkpoint, details=False).rows
    found = evaluate_rows(rows, trainer.config.options(NAME).evaluation)
    outcome = found.matching.outcome
    counted = (outcome == Outcome.TRUE_POSITIVE) | (outcome == Outcome.FALSE_POSITIVE)
    assert found.candidates.score is not None
    scores, labels = logit(found.candidates.score[counted]), (outcome == Outcome.TRUE_POSITIVE)[counted]
    calibration = fit(scores, labels, method)
    out = out or Maps.open(run).split(split).path / CALIBRATION
    try:
        calibration.write(out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
    after = log_loss(logit(calibration.apply(scores)), labels)
    click.echo(f"{calibration.samples} candidates, {calibration.positives} of them nodules")
    click.echo(f"log-loss {log_loss(scores, labels):.4f} before, {after:.4f} after, on the same candidates")
    click.echo(f"\nCalibration  {out}")


def _refuse_others(run: Path) -> None:
    """Raises UsageError for runs of other plugins."""
    from medtrain.config import read_toml
    from medtrain.errors import UsageError
    from medtrain.rundir import Maps

    maps = Maps.containing(run)
    names = read_toml(maps.config_file)[1].get("run", {}).get("plugins", [])
    if NAME not in names:
        raise UsageError(f"{run}: a run of {', '.join(names) or 'no plugin'}; nodules are found by those of {NAME}")
