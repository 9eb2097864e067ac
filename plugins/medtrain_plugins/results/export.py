"""Exports: a trained model as one file for other tools, compared with the model before the file gets its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli
from medtrain import assemble as build
from medtrain.config import Layers, RunConfig
from medtrain.errors import PluginError, UsageError, nearest
from medtrain.hookspecs import NONE
from medtrain.plugins import Plugins
from medtrain.protocols.dataset import Data
from medtrain.protocols.model import load_state, unwrap
from medtrain.protocols.weights import Check, Weights
from medtrain.run import Run
from medtrain.rundir import checkpoint
from medtrain.rundir.directory import Maps, SplitFolder
from medtrain.rundir.files import replace_file
from medtrain.runtime import distributed
from medtrain.weights import reading as weights

# What the command line names; plugins may know others. The first two are for plugins to write.
FORMATS = ("onnx", "onnx-int8", "pth", "safetensors")


@dataclass
class _Source:
    """A trained model and where it comes from. split: its folder in the run directory, None for a weights file."""

    name: str
    config: RunConfig
    plugins: Plugins
    weights: Weights
    where: str
    about: dict[str, Any]
    data: Callable[[], Data]
    split: SplitFolder | None = None
    folder: Path | None = None
    facts: dict[str, Any] | None = None


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
    the core writes for every model. out: default `<run>-<checkpoint>.<format>` in this folder. checkpoint: a name;
    default: the best, else the last. check: hold the file against the model; max_drop: see `Check`. assignments:
    `key=value` changes of the configuration, for data that have moved.

    The answer has `out`, `format`, `bytes`, `source` and what the plugin tells; `notes` are sentences for people.
    Raises PluginError when no plugin knows the format, ExportError when the file is not as good as the model.
    """
    suffix = f".{'onnx' if format.startswith('onnx') else format}"
    out = out or Path(f"{_default_stem(source, checkpoint)}{'-int8' if format.endswith('-int8') else ''}{suffix}")
    _check_out(out, source, suffix)
    found = _open_file(source, assignments) if source.is_file() else _open_run(source, checkpoint, assignments)
    world = distributed.join("cpu")
    model = unwrap(build.build_module(found.config, found.plugins, world))
    load_state(model, found.weights.state, found.where)
    facts = found.facts or {}
    run = Run(found.config, model.eval(), world.device, found.split, step=facts.get("step", 0))
    run.checkpoint, run.epoch = found.folder, facts.get("epoch", 0)

    held_against = Check(found.data, max_drop) if check else None
    try:
        with replace_file(out) as aside:
            answer = found.plugins.first_result("export", run=run, format=format, path=aside, check=held_against)
            if answer is None or answer is NONE:
                answer = _write_plain(aside, format, found)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error}); give another --out") from None
    notes = [*found.weights.notes, *answer.pop("notes", [])]
    told = {"out": str(out), "format": format, "bytes": out.stat().st_size, "source": found.name}
    return {**told, **answer, "notes": notes}


def _write_plain(path: Path, format: str, found: _Source) -> dict[str, Any]:
    """What every model can be written as."""
    if format == "pth":
        weights.write_pickle(path, found.weights.state)
    elif format == "safetensors":
        weights.write(path, found.weights.state, found.about)
    else:
        hint = nearest(format, FORMATS) if format not in FORMATS else ""
        raise PluginError(
            f"none of the plugins {', '.join(found.plugins.names)} exports the format {format!r}{hint} (hook export); "
            "pth and safetensors can be written of every model"
        )
    return {"tensors": len(found.weights.state)}


def _open_run(path: Path, name: str | None, assignments: Sequence[str]) -> _Source:
    """The model of a checkpoint, built from the configuration that is stored with it."""
    exported = weights.read_run(path, name)
    saved, _ = checkpoint.read_newest(exported.folder)
    values = tomli.loads(saved.texts["config.toml"])
    config, plugins = _configure(values, values["run"]["plugins"], str(exported.folder), assignments)
    recorded = json.loads(saved.texts["split.json"])

    def data() -> Data:
        return build.evaluation_groups(config, plugins, distributed.join("cpu"), None, recorded, new=False).as_data()

    try:
        Maps.containing(exported.folder)
        split = SplitFolder(exported.folder.parent)
    except UsageError:  # a checkpoint that was taken out of its run
        split = None
    named = f"{exported.run}/{exported.folder.name}" if split else exported.run
    where = str(exported.folder)
    origin = (named, config, plugins, exported.weights, where, exported.about, data)
    return _Source(*origin, split, exported.folder, saved.facts)


def _open_file(path: Path, assignments: Sequence[str]) -> _Source:
    """The model of a weights file that records the plugin and its options."""
    if path.name == checkpoint.MODEL and (path.parent / checkpoint.MANIFEST).is_file():
        return _open_run(path.parent, None, assignments)
    noted = weights.read_about(path)
    if noted is None:
        raise UsageError(
            f"{path}: does not say which model it is for; `medtrain weights import PLUGIN {path}` makes one that does"
        )
    plugin = noted["plugin"]
    values = {"run": {"plugins": [plugin]}, "plugins": {plugin: noted["options"]}}
    config, plugins = _configure(values, [plugin], str(path), assignments)
    read = Weights(weights.read_state(path))

    def data() -> Data:
        return build.build_split(config, plugins, distributed.join("cpu")).as_data()

    return _Source(path.name, config, plugins, read, str(path), noted, data)


def _configure(
    values: dict[str, Any], names: list[str], where: str, assignments: Sequence[str]
) -> tuple[RunConfig, Plugins]:
    plugins = Plugins.of(names)
    layers = Layers()
    layers.add(values, where)
    for assignment in assignments:
        layers.add_assignment(assignment, names)
    return layers.build(plugins.options()).with_fresh_model(), plugins


def _default_stem(source: Path, name: str | None) -> str:
    if source.is_file():
        return source.stem
    folder = weights.checkpoint_of(source, name)
    try:
        return f"{Maps.containing(folder).path.resolve().name}-{folder.name}"
    except UsageError:
        return folder.resolve().name


def _check_out(out: Path, source: Path, suffix: str) -> None:
    if out.suffix != suffix:
        raise UsageError(f"--out {out}: the name of the file must end in {suffix}")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    if out.is_dir() or (out.exists() and out.samefile(source)):
        raise UsageError(f"--out {out}: {'a folder' if out.is_dir() else 'this is what is exported'}; name another")
