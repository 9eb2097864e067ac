"""`medtrain weights import|export|show`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
from medtrain.errors import UsageError

FILE = click.Path(path_type=Path)


@click.command("import", short_help="Convert weights of any origin for a plugin's model.")
@click.argument("plugin")
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
@click.option("--out", type=FILE, help="Default: FILE with the suffix .safetensors, beside it or in this folder.")
@click.option("--set", "set_", multiple=True, metavar="KEY=VALUE", help="An option that the model is built with.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def import_weights(
    plugin: str, files: tuple[Path, ...], out: Path | None, set_: tuple[str, ...], as_json: bool
) -> None:
    """Convert weights of any origin to safetensors for PLUGIN's model, which must have exactly these tensors.

    FILE: safetensors, a state dict, a run directory or checkpoint, or a file of another project that the plugin knows;
    several where the weights are spread over several (Mirai: its encoder and its transformer). Files are read without
    running any code in them.
    """
    from medtrain_plugins.results.build_model import build_with_weights
    from medtrain_plugins.results.weights_files import note, write

    out = out or _default_out(files)
    _check_out(out, files, ".safetensors")
    model, found = build_with_weights(plugin, files, assignments=set_)
    state = model.state_dict()
    write(out, state, note(plugin, found.options, files))
    if not as_json:
        settings = " ".join(f"{plugin}.{name}={json.dumps(value)}" for name, value in found.options.items())
        found.notes += [f"Built with {settings}; the file records it."] if settings else []
    _print_written(out, state, plugin, found.options, found.notes, as_json)


@click.command(short_help="Write the weights of a run to one file.")
@click.argument("run", type=FILE)
@click.option("--out", type=FILE, help="Default: <run>-<checkpoint>.safetensors (or .pth) in this folder.")
@click.option("--checkpoint", help="A checkpoint's name; default: the best, else the last.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["safetensors", "pth"]),
    default="safetensors",
    show_default=True,
    help="pth: a plain state dict, pickled by torch.save, for tools that read nothing else.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def export(run: Path, out: Path | None, checkpoint: str | None, format_: str, as_json: bool) -> None:
    """Write the weights of RUN (a run directory, a split's folder or a checkpoint) to one file.

    They are those that evaluation uses: of the best checkpoint, or of the last when none was kept as best, and the
    moving average where one was kept. Safetensors also record the plugin and the options its model is built with.
    """
    from medtrain.weights import read_model

    from medtrain_plugins.results.export import default_stem
    from medtrain_plugins.results.weights_files import note_of, write, write_pickle

    model = read_model(run, checkpoint)
    suffix = f".{format_}"
    out = out or Path(f"{default_stem(model)}{suffix}")
    _check_out(out, (), suffix)
    noted, weights = note_of(model), model.weights
    if format_ == "pth":
        write_pickle(out, weights.state)
    else:
        write(out, weights.state, noted)
    _print_written(out, weights.state, model.plugin, noted["options"], weights.notes, as_json)


@click.command(short_help="Show what a weights file holds.")
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(file: Path, as_json: bool) -> None:
    """Show the tensors in FILE (safetensors, a state dict, a run directory or checkpoint) and what is noted in it."""
    from medtrain_plugins.results.weights_files import inspect, note_of

    model = inspect(file)
    state, noted = model.weights.state, note_of(model) if model.plugin or model.checkpoint else None
    rows = [[key, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for key, tensor in state.items()]
    if as_json:
        tensors = [{"key": key, "shape": shape, "dtype": dtype} for key, shape, dtype in rows]
        click.echo(json.dumps({"file": str(file), **_totals(state), "medtrain": noted, "tensors": tensors}))
        return
    from medtrain.console import console, table

    screen = console()
    screen.print(table("", ["tensor", "shape", "dtype"], rows))
    totals = _totals(state)
    screen.print(f"\n{len(rows)} tensors, {totals['values']:,} values, {totals['bytes'] / 1e6:,.1f} MB", soft_wrap=True)
    for key, value in (noted or {}).items():
        screen.print(f"{key:8} {value if isinstance(value, str) else json.dumps(value)}", soft_wrap=True)


def _totals(state: dict[str, Any]) -> dict[str, int]:
    values = sum(tensor.numel() for tensor in state.values())
    return {"values": values, "bytes": sum(tensor.numel() * tensor.element_size() for tensor in state.values())}


def _default_out(files: tuple[Path, ...]) -> Path:
    """Beside the first file, or here when nothing can be written there."""
    first = files[0]
    name = f"{first.resolve().name if first.is_dir() else first.stem}.safetensors"
    out = first.parent / name if os.access(first.parent, os.W_OK) else Path(name)
    if out.exists():
        raise UsageError(f"{out}: exists already; name another file with --out (or this one, to replace it)")
    return out


def _check_out(out: Path, sources: tuple[Path, ...], suffix: str) -> None:
    if out.suffix != suffix:
        raise UsageError(f"--out {out}: the name of the file must end in {suffix}")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    if out.exists() and any(source.exists() and out.samefile(source) for source in sources):
        raise UsageError(f"--out {out}: this is the file that is read; name another")


def _print_written(
    out: Path, state: dict[str, Any], plugin: str, options: dict[str, Any], notes: list[str], as_json: bool
) -> None:
    if as_json:
        written = {"status": "completed", "out": str(out), "plugin": plugin, "options": options, "notes": notes}
        click.echo(json.dumps({**written, "tensors": len(state), **_totals(state)}, default=str))
        return
    click.echo(f"Wrote {out}: {len(state)} tensors, {_totals(state)['values']:,} values.")
    for note in notes:
        click.echo(note)
