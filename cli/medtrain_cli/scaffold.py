"""`medtrain plugins new`: a plugin package of one's own, from the templates beside this file."""

from __future__ import annotations

import keyword
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import click
from medtrain.errors import UsageError

from medtrain_cli import catalog
from medtrain_cli.options import FILE

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Kind:
    """What a kind's templates do, and one of its options as an example for `--set`."""

    summary: str
    setting: str


KINDS = {
    "model": Kind("A small 3-D convolutional network for volumes.", "width=16"),
    "loss": Kind("Binary cross-entropy with smoothed labels.", "smoothing=0.2"),
    "scheduler": Kind("Polynomial decay of the learning rate.", "power=1.0"),
    "callback": Kind("Records the norm of the parameters after each epoch.", "norm=1.0"),
}


@click.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), required=True, help="What the plugin brings.")
@click.option("--out", type=FILE, help="The package's folder; default medtrain-plugin-NAME.")
def new(name: str, kind: str, out: Path | None) -> None:
    """Start a plugin package of your own: medtrain-plugin-NAME, ready for pip, with a test."""
    note = check_name(name)
    distribution = f"medtrain-plugin-{name.replace('_', '-')}"
    folder = out or Path(distribution)
    files = render(name, kind, distribution)
    write(folder, files)
    if note:
        click.echo(note)
    click.echo(f"Wrote {folder}: {', '.join(files)}\nNext:")
    for line in (
        f"cd {shlex.quote(str(folder))}",
        "python -m pip install -e '.[test]'",
        f"medtrain plugins check {name}",
        f"medtrain run --plugin medtrain.testing:ToyTask --plugin {name} --epochs 3",
        "pytest",
    ):
        click.echo(f"  {line}")


def check_name(name: str) -> str:
    """Refuse a name that cannot be a plugin's; a hint when an installed plugin's is close to it."""
    from medtrain.config import RunConfig

    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        better = re.sub(r"[^a-z0-9]+", "_", name.lower().removeprefix("medtrain-plugin-")).strip("_")
        usable = re.match(r"[a-z]", better) and not keyword.iskeyword(better)
        hint = f"; use {better!r}" if usable else ""
        raise UsageError(f"{name!r} cannot be a plugin's name: lower-case letters, digits and single underscores{hint}")
    if name in RunConfig.model_fields:
        raise UsageError(f"{name!r} is a section of the configuration: --set {name}.KEY would not reach the plugin")
    installed = {row.name: row.distribution for row in catalog.discover()}
    for other, distribution in installed.items():
        if other.replace("_", "") == name.replace("_", ""):
            raise UsageError(f"there is a plugin {other!r} already ({distribution}); choose another name")
    from difflib import get_close_matches

    close = get_close_matches(name, installed, n=1, cutoff=0.8)
    return f"Note: there is an installed plugin {close[0]!r}; the names are easily confused." if close else ""


def render(name: str, kind: str, distribution: str) -> dict[str, str]:
    """The files of a new package: text by path."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    package = f"medtrain_plugin_{name}"
    values = {"name": name, "package": package, "distribution": distribution, **vars(KINDS[kind])}
    files = {}
    for folder in (TEMPLATES / "common", TEMPLATES / kind):
        jinja = Environment(loader=FileSystemLoader(folder), undefined=StrictUndefined, keep_trailing_newline=True)
        for template in jinja.list_templates(extensions=["j2"]):
            path = template.removesuffix(".j2").replace("PACKAGE", package).replace("NAME", name)
            files[path] = jinja.get_template(template).render(values)
    return files


def write(folder: Path, files: dict[str, str]) -> None:
    """Write the package into a folder that is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: it is there already and nothing is overwritten; give another --out")
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}; give another --out") from None
