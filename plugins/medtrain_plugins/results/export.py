"""Exports: a trained model as one file for other tools, compared with the model before the file gets its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from medtrain import NONE, Run, Trainer
from medtrain.config import configure
from medtrain.errors import PluginError, UsageError, nearest
from medtrain.protocols import Check
from medtrain.rundir import SplitFolder, replace_file
from medtrain.weights import SavedModel, read_model

from medtrain_plugins.results.weights_files import note_of, write, write_pickle

# What the command line names; plugins may know others. The first two are for plugins to write.
FORMATS = ("onnx", "onnx-int8", "pth", "safetensors")


@dataclass
class SavedRun(Run):
    """A run around a model on disk, for its export."""

    saved: SavedModel | None = None


def export_model(
    source: Path,
    format: str = "onnx",
    out: Path | None = None,
    *,
    checkpoint: str | None = None,
    check: bool = True,
    max_drop: float = 1.0,
    assignments: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a trained model to one file, in one move, and say what was written.

    source: a run directory, a split's folder, a checkpoint, or safetensors that `medtrain weights import` wrote.
    format: what a plugin of the run exports (hook `export`), or "pth" (a plain state dict) and "safetensors", which
    can be written of every model. out: default `<run>-<checkpoint>.<format>` in this folder. checkpoint: a name;
    default: the best, else the last. check: compare the file with the model; max_drop: see `Check`. assignments:
    `key=value` changes of the configuration, for data that have moved.

    The answer has `out`, `format`, `bytes`, `source` and what the plugin adds; `notes` are sentences for people.
    Raises PluginError when no plugin knows the format, ExportError when the file is not as good as the model.
    """
    saved = read_model(source, checkpoint)
    suffix = f".{'onnx' if format.startswith('onnx') else format}"
    out = out or Path(f"{default_stem(saved)}{'-int8' if format.endswith('-int8') else ''}{suffix}")
    _check_out(out, source, suffix)
    if not saved.config:
        raise UsageError(
            f"{source}: does not say which model it is for; `medtrain weights import PLUGIN {source}` makes one that "
            "does"
        )
    names = saved.config["run"]["plugins"]
    config = configure(names, {str(saved.path): saved.config}, assignments=assignments).with_fresh_model()
    folder = SplitFolder(saved.path.parent) if saved.run else None
    trainer = Trainer(config=config.for_split(folder.number) if folder else config)
    model = trainer.build_model(saved.weights.state, str(saved.path))
    run = SavedRun(trainer.config, model.eval(), torch.device("cpu"), folder, saved=saved)
    recorded = None
    if saved.checkpoint is not None:
        facts, recorded = saved.checkpoint.facts, json.loads(saved.checkpoint.texts["split.json"])
        run.checkpoint, run.epoch, run.step = saved.path, facts["epoch"], facts["step"]
    compared = Check(lambda: trainer.build_data(recorded), max_drop) if check else None
    try:
        with replace_file(out) as aside:
            asked = {"run": run, "format": format, "path": aside, "check": compared}
            answer = trainer.plugins.first_result("export", **asked)
            if answer is NONE:
                answer = trainer.plugins.default_result("export", **asked)
            if answer is None:
                raise _unknown(format, names)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error}); give another --out") from None
    notes = [*saved.weights.notes, *answer.pop("notes", [])]
    written = {"out": str(out), "format": format, "bytes": out.stat().st_size, "source": _label(saved)}
    return {**written, **answer, "notes": notes}


def write_plain(run: Run, format: str, path: Path) -> dict[str, Any] | None:
    """What every model can be written as; None for other formats."""
    saved = run.saved if isinstance(run, SavedRun) else None
    state = saved.weights.state if saved else run.model.state_dict()
    if format == "pth":
        write_pickle(path, state)
    elif format == "safetensors":
        write(path, state, note_of(saved) if saved else None)
    else:
        return None
    return {"tensors": len(state)}


def default_stem(saved: SavedModel) -> str:
    """How a file with the model is called: `<run>-<checkpoint>`, or as the folder or file it is from."""
    if saved.checkpoint is None:
        return saved.path.stem
    return f"{saved.run.path.resolve().name}-{saved.path.name}" if saved.run else saved.path.resolve().name


def _label(saved: SavedModel) -> str:
    if saved.checkpoint is None:
        return saved.path.name
    return f"{saved.run.path.resolve().name}/{saved.path.name}" if saved.run else saved.path.resolve().name


def _unknown(format: str, plugins: Sequence[str]) -> PluginError:
    hint = nearest(format, FORMATS) if format not in FORMATS else ""
    return PluginError(
        f"none of the plugins {', '.join(plugins)} exports the format {format!r}{hint} (hook export); "
        "pth and safetensors can be written of every model"
    )


def _check_out(out: Path, source: Path, suffix: str) -> None:
    if out.suffix != suffix:
        raise UsageError(f"--out {out}: the name of the file must end in {suffix}")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    if out.is_dir() or (out.exists() and out.samefile(source)):
        raise UsageError(f"--out {out}: {'a folder' if out.is_dir() else 'this is what is exported'}; name another")
