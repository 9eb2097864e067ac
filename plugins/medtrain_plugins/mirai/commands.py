"""`medtrain calibrate mirai`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--group", default="validation", show_default=True, help="Group of the run's data to fit on.")
@click.option("--split", default=0, show_default=True, help="Which split of the run.")
@click.option("--checkpoint", help="A checkpoint's name; default: the best, else the last.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: calibration.json in the run directory.")
def calibrate(run: Path, group: str, split: int, checkpoint: str | None, out: Path | None) -> None:
    """Fit the Platt calibration of a Mirai run.

    The model's yearly risks on a group it was not trained on, and what happened to these women, give one line per
    year. Use the file with the option mirai.calibration.
    """
    from medtrain import Trainer
    from medtrain.errors import UsageError

    from medtrain_plugins.mirai.calibration import fit, known_outcomes, log_loss

    trainer = Trainer.from_maps(run)
    if "mirai" not in trainer.config.plugins:
        raise UsageError(f"{run}: a run of {', '.join(trainer.config.run.plugins)}; only those of mirai are calibrated")
    if trainer.config.options("mirai").calibration:
        trainer = Trainer.from_maps(run, assignments=["mirai.calibration="])
    if group == "train":
        raise UsageError("--group train: risks of the women the model was trained on say nothing about those of others")
    rows = trainer.evaluate(group, split_idx=split, checkpoint=checkpoint, details=False).rows
    target, known = known_outcomes(rows["event_time"], rows["event_observed"])
    calibration = fit(rows["risk"], target, known)
    out = out or run / "calibration.json"
    try:
        calibration.write(out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); give another --out") from None

    before, after = log_loss(rows["risk"], target, known), log_loss(calibration.apply(rows["risk"]), target, known)
    click.echo("year  samples  cases     slope  intercept  log-loss before and after")
    for year in range(len(before)):
        click.echo(
            f"{year + 1:4d}  {calibration.samples[year]:7d}  {calibration.cases[year]:5d}  "
            f"{calibration.slope[year]:8.3f}  {calibration.intercept[year]:9.3f}  {before[year]:.4f}  {after[year]:.4f}"
        )
    click.echo(f'\nCalibration  {out}\nApply it by the option mirai.calibration = "{out}".')
