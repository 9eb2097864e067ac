"""`medtrain runs list|show|pause|continue`."""

from __future__ import annotations

import json
from pathlib import Path

import click
from medtrain.errors import UsageError

from medtrain_cli.options import FILE


@click.command("list")
@click.argument("folder", type=FILE, default="runs")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_runs(folder: Path, as_json: bool) -> None:
    """List the run directories in a folder."""
    from medtrain.rundir import Maps

    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder; name the folder that holds your runs")
    rows = []
    for index in sorted(folder.glob("*/maps.json")):
        maps = Maps.open(index.parent)
        for split in maps.splits():
            status = split.status()
            best = status.get("best") or {}
            rows.append(
                {
                    "maps": str(maps.path),
                    "split": split.number,
                    "plugins": [plugin["name"] for plugin in maps.index()["plugins"]],
                    "status": status["status"],
                    "epoch": status.get("epoch"),
                    "num_epochs": status.get("num_epochs"),
                    "best": best,
                }
            )
    if as_json:
        click.echo(json.dumps(rows))
        return
    from medtrain.console import cell, console, table

    shown = [
        [
            row["maps"],
            row["split"],
            row["status"],
            f"{row['epoch']}/{row['num_epochs']}",
            f"{row['best'].get('name', '')} {cell(row['best'].get('value'))}",
        ]
        for row in rows
    ]
    console().print(table("", ["run", "split", "status", "epochs", "best"], shown))


@click.command()
@click.argument("directory", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(directory: Path, as_json: bool) -> None:
    """Show one run: status, history, checkpoints."""
    from medtrain.rundir import Maps

    maps = Maps.open(directory)
    splits = maps.splits()
    if as_json:
        described = [
            {
                "split": split.number,
                "status": split.status(),
                "history": split.history(),
                "checkpoints": [path.name for path in split.checkpoints()],
            }
            for split in splits
        ]
        click.echo(json.dumps({"maps": str(directory), "index": maps.index(), "splits": described}))
        return
    from medtrain.console import console, table

    screen = console()
    index = maps.index()
    screen.print(f"{directory}  made {index['created']} by medtrain {index['medtrain']}", soft_wrap=True)
    for split in splits:
        status = split.status()
        screen.print(f"\nsplit {split.number}: {status['status']} {status.get('reason', '')}", soft_wrap=True)
        groups = split.membership()["groups"]
        counts = [f"{name} {len(group['samples'])}" for name, group in groups.items()]
        screen.print(f"samples: {', '.join(counts)}")
        history = split.history()
        if history:
            minor = ("train/grad_norm", "undefined", "evaluations")
            parts = ("/loss_", "learning_rate_")
            columns = [key for key in history[-1] if key not in minor and not any(p in key for p in parts)][:9]
            screen.print(table("", columns, [[record.get(key) for key in columns] for record in history]))
        screen.print(f"checkpoints: {', '.join(path.name for path in split.checkpoints()) or 'none'}")


SPLIT = click.option("--split", type=int, default=None, help="This split only; default: all that are in training.")


@click.command()
@click.argument("directory", type=FILE)
@SPLIT
def pause(directory: Path, split: int | None) -> None:
    """Have a training wait at its next step. It keeps its memory; `medtrain runs continue` lets it go on."""
    _control(directory, split, "running")


@click.command("continue")
@click.argument("directory", type=FILE)
@SPLIT
def go_on(directory: Path, split: int | None) -> None:
    """Have a paused training go on."""
    _control(directory, split, "paused")


def _control(directory: Path, number: int | None, expected: str) -> None:
    """Pause the splits that are running, or let those that are paused go on."""
    from medtrain.rundir import Maps

    splits = Maps.open(directory).splits()
    if number is not None:
        splits = [split for split in splits if split.number == number]
        if not splits:
            raise UsageError(f"{directory}: there is no split {number}")
    found = {split.number: split.status()["status"] for split in splits}
    # A pause that was asked for and has not begun yet can be taken back.
    chosen = [
        split for split in splits if found[split.number] == expected or (expected == "paused" and split.is_to_pause())
    ]
    if not chosen:
        stand = ", ".join(f"split {key} is {status}" for key, status in found.items()) or "no split has begun"
        raise UsageError(f"{directory}: nothing here is {expected}: {stand}")
    for split in chosen:
        split.pause(expected == "running")
        said = "pauses at its next step" if expected == "running" else "goes on"
        click.echo(f"split {split.number} {said}")
