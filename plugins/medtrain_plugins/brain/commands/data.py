"""`medtrain data synth brain`, `medtrain data prepare brain` and `medtrain data check brain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--out", required=True, type=FOLDER, help="Folder to write.")
@click.option("--participants", type=int, default=120, show_default=True, help="Half of them ill.")
@click.option("--sessions", type=int, default=2, show_default=True, help="Of each participant, half a year apart.")
@click.option("--sites", type=int, default=3, show_default=True, help="With scanners of their own.")
@click.option("--size", type=int, default=32, show_default=True, help="Voxels along each axis.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal files.")
@click.option(
    "--variant",
    type=click.Choice(["atrophy", "trivial", "shepp_logan"]),
    default="atrophy",
    show_default=True,
    help="Heads with atrophy, heads with a darker half, or nested ellipsoids.",
)
@click.option(
    "--signal",
    type=click.Choice(["diagnosis", "none"]),
    default="diagnosis",
    show_default=True,
    help="What the images tell: the diagnosis, or nothing of it.",
)
def synth(out: Path, **settings: Any) -> None:
    """Write a synthetic BIDS tree of brain images.

    T1w images of several sites and sessions, the diagnosis (AD, CN), age and sex in tables, and the tissues of each
    image as a derivative. Nothing but the images tells of the diagnosis.
    """
    from medtrain_plugins.brain.synth import synthesize

    counts = synthesize(out, settings.pop("participants"), **settings)
    click.echo(
        f"{counts['images']} images of {counts['participants']} participants, {counts['ill']} of them ill: {out}"
    )


def _of_a_cohort(command: Any) -> Any:
    """The options that choose images of a tree."""
    options = [
        click.option("--data", "bids", required=True, type=FOLDER, help="BIDS or CAPS tree."),
        click.option("--file-type", default="T1w", show_default=True, help="Preset, or a JSON table of its parts."),
        click.option("--masks", default=None, help="File type of masks, as a preset or a JSON table."),
        click.option("--table", type=FOLDER, help="TSV of the sessions to take; default: all."),
        click.option("--canonical", is_flag=True, help="Turn axes to the right, front and up."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@_of_a_cohort
@click.option("--out", required=True, type=FOLDER, help="Folder of the cache, for cache = 'disk' and cache_dir.")
@click.option("--transforms", type=FOLDER, help="TOML file whose list `transforms` is done before; as in the run.")
@click.option("--skip-bad", is_flag=True, help="Leave out what cannot be used instead of stopping.")
@click.option("--zero", is_flag=True, help="Voxels that are NaN or infinite become 0.")
def prepare(
    bids: Path,
    file_type: str,
    masks: str | None,
    table: Path | None,
    canonical: bool,
    out: Path,
    transforms: Path | None,
    skip_bad: bool,
    zero: bool,
) -> None:
    """Decode and transform the images of a tree once, into one memory-mapped file that runs read.

    A run uses it with cache = "disk" and cache_dir = OUT, and the same file type and transforms; images that change
    later are decoded again.
    """
    from medtrain_plugins.brain.data.dataset import BidsDataset

    steps = _read_steps(transforms) if transforms is not None else []
    dataset = BidsDataset(
        bids,
        _file_type(file_type),
        data=table,
        masks=None if masks is None else _file_type(masks),
        task="reconstruction",
        transforms=steps,
        cache="disk",
        cache_dir=out,
        exclude="skip" if skip_bad else "strict",
        canonical=canonical,
        non_finite="zero" if zero else "error",
    )
    size = sum(path.stat().st_size for path in out.glob("images-*.bin"))
    left_out = f", {len(dataset.about['excluded'])} left out" if dataset.about["excluded"] else ""
    click.echo(f"{len(dataset)} images ({size / 2**20:.1f} MiB){left_out}: {out}")


@click.command()
@_of_a_cohort
@click.option("--label", default=None, help="Column that every session needs a value of.")
@click.option("--headers-only", is_flag=True, help="Do not decode the voxels.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON table.")
def check(
    bids: Path,
    file_type: str,
    masks: str | None,
    table: Path | None,
    canonical: bool,
    label: str | None,
    headers_only: bool,
    as_json: bool,
) -> int:
    """Look at every image of a tree that a run would read, and list what is wrong with which file.

    Missing sessions, ambiguous names, dimensions, affines, masks that do not fit, damage, voxels that are not finite.
    Exits with 3 when there is something.
    """
    from medtrain_plugins.brain.data.check import check_tree

    count, problems = check_tree(
        bids,
        _file_type(file_type),
        masks=None if masks is None else _file_type(masks),
        data=table,
        label=label,
        canonical=canonical,
        contents=not headers_only,
    )
    if as_json:
        click.echo(json.dumps({"images": count, "problems": problems}, indent=2))
    else:
        for problem in problems:
            click.echo(problem)
        click.echo(f"{count} images can be used, {len(problems)} problems: {bids}")
    return 3 if problems else 0


def _file_type(text: str) -> Any:
    """The name of a preset, or the table of a JSON text."""
    from medtrain.errors import UsageError

    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"--file-type {text}: neither the name of a preset nor JSON ({error})") from None


def _read_steps(path: Path) -> list[Any]:
    """The list `transforms` of a TOML file: at its top level, or as in a configuration."""
    from medtrain.config import read_toml
    from medtrain.errors import UsageError

    values = read_toml(path)[1]
    steps = values.get("transforms", values.get("plugins", {}).get("brain", {}).get("transforms"))
    if not isinstance(steps, list):
        raise UsageError(f"{path}: there is no list `transforms` in this file")
    return steps
