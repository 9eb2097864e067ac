"""`medtrain data split`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from medtrain.errors import UsageError

FILE = click.Path(path_type=Path)


@click.command("split", short_help="Split the participants of a table: hold out, folds, sites.")
@click.argument("table", type=FILE)
@click.option("--out", type=FILE, help="Folder in which the split gets a folder of its own; default: TABLE's.")
@click.option("--test", type=click.FloatRange(min=0, min_open=True), help="Hold out: a fraction, or a number from 1.")
@click.option(
    "--folds", type=click.IntRange(min=2), help="Deal into folds; with --test: what that leaves for training."
)
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Deal the folds so often.")
@click.option("--leave-one-out", metavar="COLUMN", help="A fold for each site, say, that leaves it out.")
@click.option("--stratify", metavar="COLUMN,...", help="Columns to balance: categories or numbers.")
@click.option("--group", metavar="COLUMN", help="Whoever shares this column's value (site, family) stays together.")
@click.option("--longitudinal", is_flag=True, help="Hold out all sessions; default: only the first of a participant.")
@click.option("--subset-name", metavar="NAME", help="The held-out side; default: test, or validation for folds.")
@click.option("--p-categorical", type=click.FloatRange(0, 1), default=0.8, show_default=True, help="For --test.")
@click.option("--p-continuous", type=click.FloatRange(0, 1), default=0.8, show_default=True, help="For --test.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same split.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def split(
    table: Path,
    out: Path | None,
    test: float | None,
    folds: int | None,
    repeats: int,
    leave_one_out: str | None,
    stratify: str | None,
    group: str | None,
    longitudinal: bool,
    subset_name: str | None,
    p_categorical: float,
    p_continuous: float,
    seed: int,
    as_json: bool,
) -> None:
    """Split the participants of TABLE (TSV or CSV with participant_id and session_id) and write who is where.

    --test 0.2 holds out a fifth of the participants; --folds 5 makes five folds; both together hold out first and deal
    the others. With --stratify, what --test holds out must be as alike as the p-values --p-categorical (chi-square)
    and --p-continuous (t-test) ask. Sessions of one participant are never parted.
    """
    if test is None and folds is None and leave_one_out is None:
        raise UsageError("say how to split: --test 0.2, --folds 5, both, or --leave-one-out site")
    if leave_one_out is not None:
        _refuse_beside_leave_one_out(test=test, folds=folds, group=group, stratify=stratify)
    if repeats > 1 and folds is None:
        raise UsageError("--repeats goes with --folds")
    columns = [name.strip() for name in stratify.split(",") if name.strip()] if stratify else []
    from medtrain import make_kfold, make_split

    if test is not None:
        folder = make_split(
            table,
            test,
            out,
            subset_name or "test",
            columns,
            p_categorical,
            p_continuous,
            longitudinal,
            seed=seed,
            groups=group,
            n_splits=folds,
            repeats=repeats,
        )
    else:
        folder = make_kfold(
            table,
            folds or 0,
            out,
            subset_name or "validation",
            columns,
            longitudinal,
            seed,
            repeats,
            group or leave_one_out,
            leave_one_out is not None,
        )
    _tell(folder, seed, as_json)


def _refuse_beside_leave_one_out(**others: Any) -> None:
    for name, value in others.items():
        if value is not None:
            raise UsageError(f"--leave-one-out makes one fold per value of its column: it does not go with --{name}")


def _tell(folder: Path, seed: int, as_json: bool) -> None:
    """What was written: how many are on each side, and how alike the sides are."""
    told: list[tuple[Path, dict[str, Any]]] = [
        (path.parent, json.loads(path.read_text(encoding="utf-8")))
        for path in (folder / "medtrain.json", *sorted(folder.glob("*_fold/medtrain.json")))
        if path.is_file()
    ]
    if as_json:
        made: dict[str, Any] = {"status": "completed", "out": str(folder), "seed": seed, **told[0][1]}
        if len(told) > 1:
            made["folds"] = {"out": str(told[1][0]), **told[1][1]}
        click.echo(json.dumps(made))
        return
    from medtrain.console import console, table

    screen = console()
    for path, facts in told:
        names = [name for name in facts["sizes"][0] if name not in ("repeat", "left_out")]
        rows = [
            [f"split-{i}" if "p_values" not in facts else path.name, *[size[name] for name in names]]
            + ([size["left_out"]] if "left_out" in size else [])
            for i, size in enumerate(facts["sizes"])
        ]
        heads = ["", *[f"{name}: participants" for name in names], *(["left out"] if len(rows[0]) > 3 else [])]
        screen.print(f"Wrote {path}", soft_wrap=True)
        screen.print(table("", heads, rows))
        for column, p in facts.get("p_values", {}).items():
            screen.print(f"{column}: p = {p:.2f} between the sides")
