"""`medtrain benchmark risk`: every risk model on one cohort, and one comparison of all of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from medtrain.errors import DataError, Interrupted, MedtrainError, Preempted, UsageError, nearest

if TYPE_CHECKING:
    from medtrain import ComparedRuns, RunConfig

MODELS = ("mirai", "lmv_net", "imgfeatalign", "oa_breacr", "vmra_mar")
REGISTRATION = "mammo_reg_net"
EACH = "each."
FILE = click.Path(path_type=Path)


class Failed(Exception):
    """A model failed and is left out of the comparison; the others continue."""


@dataclass
class Request:
    """The requested benchmark: the same settings for every model."""

    data: Path | None
    images: Path | None
    preset: str | None
    epochs: int | None
    seed: int | None
    assignments: Sequence[str]

    def resolve(self, plugin: str, registration: str | None = None) -> RunConfig:
        """The configuration of one plugin: preset < --set < flags, as in `medtrain run`.

        registration: that option, for plugins that have it. Raises ConfigError for unusable settings.
        """
        from medtrain.config import configure

        known = type(configure([plugin]).options(plugin)).model_fields
        values: dict[str, Any] = {}
        if registration is not None and "registration" in known:
            values["--registration"] = {"plugins": {plugin: {"registration": registration}}}
        assignments = []
        for assignment in self.assignments:
            if assignment.startswith(EACH):
                # The registration network need not have the options of every model.
                key = assignment.removeprefix(EACH).partition("=")[0].split(".")[0].strip()
                if plugin in MODELS or key in known:
                    assignments.append(f"{plugin}.{assignment.removeprefix(EACH)}")
            elif assignment.partition(".")[0] not in {*MODELS, REGISTRATION} - {plugin}:
                assignments.append(assignment)
        flags: dict[str, dict[str, Any]] = {
            "run": {"preset": self.preset, "seed": self.seed},
            "data": {"table": self.data, "images": self.images},
            "optimization": {"num_epochs": self.epochs},
        }
        given = {
            section: {key: value for key, value in inner.items() if value is not None}
            for section, inner in flags.items()
        }
        return configure([plugin], values, preset=self.preset, assignments=assignments, flags={"benchmark": given})


@click.command()
@click.option("--data", type=FILE, help="Table of the cohort; default: the embedded demo cohort.")
@click.option("--images", type=FILE, help="Folder of its images.")
@click.option(
    "--models", default="all", show_default=True, metavar="NAMES", help=f"all, or some of {','.join(MODELS)}."
)
@click.option("--out", type=FILE, help="Folder of the runs and the comparison; default: benchmark-<UTC time>.")
@click.option("--preset", metavar="NAME", help="Start from this preset of every model; default without --data: demo.")
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs of every model (optimization.num_epochs).")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of every run (run.seed).")
@click.option(
    "--set",
    "set_",
    multiple=True,
    metavar="KEY=VALUE",
    help="One value for every run; with lmv_net.KEY for that model, with each.KEY for the option of every model.",
)
@click.option(
    "--registration",
    metavar="FILE|RUN|none|train",
    help="Weights of MammoRegNet for the models that align the prior exam; train makes them first, from the same "
    "cohort. Default with the preset demo: none.",
)
@click.option("--group", default="test", show_default=True, help="Group to compare on.")
@click.option(
    "--replicates", type=click.IntRange(min=0), default=2000, show_default=True, help="Replicates of the bootstrap."
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Last line of standard output: one JSON object.")
def risk(
    data: Path | None,
    images: Path | None,
    models: str,
    out: Path | None,
    preset: str | None,
    epochs: int | None,
    seed: int | None,
    set_: tuple[str, ...],
    registration: str | None,
    group: str,
    replicates: int,
    quiet: bool,
    as_json: bool,
) -> int:
    """Train and evaluate the breast-cancer risk models on one cohort and compare them.

    Every model has its own run directory in --out. Called again with the same --out, it goes on: what is trained is
    kept, what was interrupted is resumed. A model that fails is reported and the others go on.
    """
    names = _chosen(models)
    if preset is None and data is None:
        preset = "demo"
    if registration is None and preset == "demo":
        registration = "none"
    out = out or Path(f"benchmark-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S')}")
    say = _teller(as_json)
    request = Request(data and data.resolve(), images and images.resolve(), preset, epochs, seed, set_)
    network = out / REGISTRATION
    weights = str(network.resolve()) if registration == "train" else registration
    _set_one_cohort(request, request.resolve(names[0], weights), group)
    plans = {name: request.resolve(name, weights) for name in names}
    needing = [name for name, config in plans.items() if registration == "train" and _aligns(config, name)]
    failures: dict[str, str] = {}
    if needing:
        plans = {REGISTRATION: request.resolve(REGISTRATION), **plans}
    out.mkdir(parents=True, exist_ok=True)
    for number, (name, config) in enumerate(plans.items(), 1):
        say(f"[{number}/{len(plans)}] {name}")
        try:
            if name in needing and REGISTRATION in failures:
                raise Failed(f"{REGISTRATION} failed, which it needs")
            _train(out / name, config, quiet, as_json, say)
            if name != REGISTRATION and not (out / name / "split-0" / f"evaluation-{group}").is_dir():
                _medtrain(["eval", str(out / name), "--group", group], as_json)
        except Failed as failure:
            failures[name] = str(failure)
            say(f"{name} failed: {failure}")
    compared = _compare(out, [name for name in names if name not in failures], group, replicates, failures)
    _finish(out, compared, failures, as_json)
    return 1 if failures or compared is None else 0


def _chosen(models: str) -> list[str]:
    names = list(MODELS) if models == "all" else [name.strip() for name in models.split(",") if name.strip()]
    for name in names:
        if name not in MODELS:
            raise UsageError(f"--models: there is no risk model {name!r}{nearest(name, MODELS)}; {', '.join(MODELS)}")
    if not names or len(set(names)) < len(names):
        raise UsageError("--models: name each model once, separated by commas")
    return names


def _set_one_cohort(request: Request, config: RunConfig, group: str) -> None:
    """Gives all models the same cohort: one table, one split. Without data it is the first model's demo."""
    from medtrain_plugins.mammography.build_data import demo_table
    from medtrain_plugins.mammography.cohort.cohort import read_cohort

    options = config.options(config.run.plugins[0])
    if config.data.table is None:
        request.data = demo_table(options).resolve()
    table = request.data or config.data.table
    assert table is not None
    cohort = read_cohort(table, config.data.images, options.layout, options.columns, options.on_bad_rows)
    if not {"train", "validation", group} <= set(cohort.groups):
        raise DataError(
            f"{table}: the groups of this cohort are {', '.join(cohort.groups) or 'not given'}, but models can only be "
            f"compared when train, validation and {group} are the same women for all of them; put the images in the "
            "folders train, val and test (CSAW-CC: or name the group of every row in a column `split`)"
        )


def _aligns(config: RunConfig, name: str) -> bool:
    return getattr(config.options(name), "registration", "none") != "none"


def _train(folder: Path, config: RunConfig, quiet: bool, as_json: bool, say: Callable[[str], None]) -> None:
    """Trains into a folder, or continues the run in it if that has the same configuration."""
    from medtrain.rundir import Maps

    asked = config.to_toml()
    silence = ["--quiet"] if quiet else []
    if not folder.exists():
        source = folder.with_suffix(".toml")
        source.write_text(asked, encoding="utf-8")
        return _medtrain(["run", "--config", str(source), "--out", str(folder), *silence], as_json)
    try:
        maps = Maps.open(folder)
    except MedtrainError as error:
        raise Failed(str(error)) from None
    if maps.config_file.read_text(encoding="utf-8") != asked:
        raise Failed(f"{folder} was made with other settings; give another --out, or remove that folder")
    if maps.split(0).status()["status"] == "completed":
        return say(f"{folder} is trained already.")
    return _medtrain(["resume", str(folder), *silence], as_json)


def _medtrain(arguments: list[str], to_stderr: bool) -> None:
    """Runs a medtrain command in its own process, which frees its memory at the end."""
    process = subprocess.Popen([sys.executable, "-m", "medtrain", *arguments], stdout=2 if to_stderr else None)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # the process got the signal too, and writes a checkpoint
                continue
    finally:
        signal.signal(signal.SIGTERM, before)
    if code == Interrupted.exit_code:
        raise Interrupted("interrupted; the same command goes on from here")
    if code == Preempted.exit_code:
        raise Preempted("preempted; the same command goes on from here")
    if code:
        raise Failed(f"`medtrain {' '.join(arguments)}` ended with exit code {code}; its message is above")


def _compare(out: Path, names: list[str], group: str, replicates: int, failures: dict[str, str]) -> ComparedRuns | None:
    if not names:
        return None
    from medtrain import compare_runs, write_comparison

    compared = compare_runs([out / name for name in names], group, replicates=replicates)
    missing = [f"{name} is missing: {reason}." for name, reason in failures.items()]
    write_comparison(out, compared, " ".join(missing))
    return compared


def _teller(as_json: bool) -> Callable[[str], None]:
    def say(text: str) -> None:
        click.echo(text, err=as_json)

    return say


def _finish(out: Path, compared: ComparedRuns | None, failures: dict[str, str], as_json: bool) -> None:
    if as_json:
        summary: dict[str, Any] = {"status": "failed" if failures else "completed", "out": str(out)}
        told = compared.to_json() if compared else {}
        click.echo(json.dumps({**summary, "failed": failures, **told}))
        return
    if compared is not None:
        from medtrain import counts_text, differences_table, scores_table

        for unit in compared.units:
            click.echo(f"\nBy {unit.name}: {counts_text(unit)}\n{scores_table(unit).to_string(index=False)}")
            if len(compared.runs) > 1:
                shown = differences_table(unit).to_string(index=False, float_format="{:.4g}".format, na_rep="-")
                click.echo(f"\nDifferences (first - second)\n{shown}")
        click.echo(f"\nReport       {out / 'report.html'}\nNumbers      {out / 'comparison.json'}")
    for name, reason in failures.items():
        click.echo(f"Failed       {name}: {reason}", err=True)
