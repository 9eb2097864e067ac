"""`medtrain data synth nodule`."""

from __future__ import annotations

from pathlib import Path

import click


def _three(context: click.Context, option: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or min(numbers) <= 0:
        raise click.BadParameter(f"{text!r}: give three positive numbers z,y,x, such as {option.default}")
    return numbers


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write, new or empty.")
@click.option(
    "--scans", type=click.IntRange(min=1), default=40, show_default=True, help="Each of a patient of its own."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Equal seeds give equal files.")
@click.option("--size", callback=_three, default="96,128,128", show_default=True, help="Voxels, z,y,x.")
@click.option("--spacing", callback=_three, default="1.5,0.8,0.8", show_default=True, help="Of voxels in mm, z,y,x.")
@click.option("--nodules", default="2,3,4", show_default=True, help="How many the scans have, in turn, such as 0,2,4.")
@click.option("--noise", type=click.FloatRange(min=0), default=20.0, show_default=True, help="Of the scanner, in HU.")
def synth(
    out: Path,
    scans: int,
    seed: int,
    size: tuple[float, ...],
    spacing: tuple[float, ...],
    nodules: str,
    noise: float,
) -> None:
    """Write synthetic chest CT with lung nodules as MHD files with the tables of LUNA16.

    Phantoms of the chest with branching vessels, and nodules of 4 to 20 mm whose look tells of their malignancy. A
    third of the scans is oblique, in a quarter axes run the other way. characteristics.csv is annotations.csv with
    ratings of malignancy, spiculation and texture, and can be used in its place.
    """
    from medtrain_plugins.nodule.synthetic.synth import synthesize

    if any(voxels != int(voxels) for voxels in size):
        raise click.BadParameter("voxels are counted in whole numbers", param_hint="--size")
    if not all(part.strip().isdecimal() for part in nodules.split(",")):
        raise click.BadParameter(f"{nodules!r}: give whole numbers, such as 2,3,4", param_hint="--nodules")
    counts = synthesize(
        out,
        scans,
        seed,
        shape=[int(voxels) for voxels in size],
        spacing=spacing,
        nodules=[int(part) for part in nodules.split(",")],
        noise_hu=noise,
    )
    click.echo(
        f"{counts['scans']} scans with {counts['nodules']} nodules and {counts['irrelevant']} findings too small to "
        f"count: {out}"
    )
