"""`medtrain config import`: settings of the PIVOT training guide (YAML) as a TOML file for `medtrain run`."""

from __future__ import annotations

from pathlib import Path

import click

FILE = click.Path(path_type=Path)
PLUGINS = ("pivot",)


@click.command("import")
@click.argument("file", type=FILE)
@click.option("--plugin", type=click.Choice(PLUGINS), default="pivot", show_default=True, help="Whose settings.")
@click.option("--onto", type=FILE, help="YAML file that FILE is laid over, for parts of a configuration.")
@click.option("--out", type=FILE, help="TOML file to write. Default: print.")
@click.option("--strict", is_flag=True, help="Fail when a key has no place.")
def import_config(file: Path, plugin: str, onto: Path | None, out: Path | None, strict: bool) -> None:
    """Turn a YAML configuration of the PIVOT training guide into one for `medtrain run --config`.

    Tells what was decided on the way, and every key that has no place.
    """
    import tomli_w
    from medtrain.config import RunConfig, configure
    from medtrain.errors import ConfigError, UsageError, first_lines

    from medtrain_plugins.nodule.commands.guide_settings import merge, read_yaml
    from medtrain_plugins.nodule.commands.pivot_guide import import_guide

    settings = read_yaml(file)
    if onto is not None:
        settings = merge(read_yaml(onto), settings)
    try:
        found = import_guide(settings)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    if found.unplaced:
        rows = [f"{key}: {reason}" for key, reason in found.unplaced.items()]
        told = f"{len(rows)} keys have no place:\n{first_lines(rows, limit=len(rows))}"
        if strict:
            raise ConfigError(f"{file}: {told}")
    configure(found.values["run"]["plugins"], {str(file): found.values})
    ordered = {name: found.values[name] for name in RunConfig.model_fields if name in found.values}
    comments = "".join(f"# {note}\n" for note in found.notes)
    text = f"# From {file.name}.\n{comments}\n{tomli_w.dumps(ordered)}"
    if out is None:
        click.echo(text, nl=False)
    else:
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
        click.echo(f"{out}: train with medtrain run --config {out}")
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    if found.unplaced:
        click.echo(told, err=True)
