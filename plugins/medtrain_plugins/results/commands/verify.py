"""`medtrain runs verify`."""

from __future__ import annotations

import json
from pathlib import Path

import click

FILE = click.Path(path_type=Path)


@click.command(short_help="Check a run directory file by file.")
@click.argument("directory", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Last line of standard output: one JSON object.")
def verify(directory: Path, as_json: bool) -> int:
    """Check a run directory file by file: checksums, members, histories, checkpoints. Exits 3 when one is damaged."""
    from medtrain.errors import DataError

    from medtrain_plugins.results.verify import verify as check

    checked = check(directory)
    damaged = [one for one in checked if one.problem]
    if as_json:
        status = "damaged" if damaged else "sound"
        click.echo(json.dumps({"status": status, "checked": [vars(one) for one in checked]}))
    else:
        for one in checked:
            click.echo(f"{'DAMAGED' if one.problem else 'ok':8} {one.what}{': ' if one.problem else ''}{one.problem}")
        click.echo(f"{len(checked)} things checked, {len(damaged)} damaged")
    return DataError.exit_code if damaged else 0
