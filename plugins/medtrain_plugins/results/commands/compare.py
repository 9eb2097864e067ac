"""`medtrain runs compare`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from medtrain.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

FILE = click.Path(path_type=Path)


@click.command(short_help="Compare runs on what all of them scored.")
@click.argument("runs", nargs=-1, required=True, type=FILE)
@click.option("--group", default="test", show_default=True, help="Group of samples to compare on.")
@click.option("--split", type=click.IntRange(min=0), help="Which split of every run; default: all folds together.")
@click.option("--out", type=FILE, help="Where the files go; default: compare-<UTC time> in the current folder.")
@click.option(
    "--replicates", type=click.IntRange(min=0), default=2000, show_default=True, help="Replicates of the bootstrap."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--json", "as_json", is_flag=True, help="Last line of standard output: one JSON object.")
def compare(
    runs: tuple[Path, ...],
    group: str,
    split: int | None,
    out: Path | None,
    replicates: int,
    seed: int,
    as_json: bool,
) -> None:
    """Compare runs on what all of them scored: values, differences, limits, p-values, plots.

    A run that was not evaluated on the group yet is evaluated first.
    """
    if len(runs) < 2:
        raise UsageError("name at least two run directories; `medtrain runs list` shows them")
    from medtrain_plugins.results.compare import (
        compare_runs,
        counts_text,
        differences_table,
        runs_table,
        scores_table,
        write_comparison,
    )

    out = out or Path(f"compare-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S')}")
    compared = compare_runs(runs, group, split=split, seed=seed, replicates=replicates)
    write_comparison(out, compared)
    if as_json:
        click.echo(json.dumps({"status": "completed", "out": str(out), **compared.to_json()}))
        return
    from medtrain.console import console

    screen = console()
    _show("", runs_table(compared))
    for unit in compared.units:
        _show(f"By {unit.name}: {counts_text(unit)}", scores_table(unit))
        _show("Differences (first - second)", differences_table(unit))
    if compared.skipped:
        screen.print(f"\nNot compared, because not every run has it: {', '.join(compared.skipped)}", soft_wrap=True)
    screen.print(f"\nReport       {out / 'report.html'}\nNumbers      {out / 'comparison.json'}", soft_wrap=True)


def _show(title: str, shown: pd.DataFrame) -> None:
    from medtrain.console import console, table

    console().print()
    console().print(table(title, list(shown.columns), shown.values.tolist()))
