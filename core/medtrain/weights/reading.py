"""Weights in files: found, read, checked key by key against a model, and written so that they can be used again."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medtrain.config.sections import RunConfig
from medtrain.errors import CheckpointError, ConfigError, UsageError
from medtrain.hookspecs import NONE
from medtrain.plugins import Plugins, load
from medtrain.protocols.weights import State, Weights
from medtrain.rundir import checkpoint
from medtrain.rundir.directory import Maps
from medtrain.rundir.files import replace_file

# The one key of the metadata of a safetensors file that tells what the weights are; its value is JSON.
METADATA = "medtrain"


def read(plugins: Plugins, plugin: str, config: RunConfig, paths: Sequence[Path]) -> Weights:
    """The weights for a plugin's model in files: medtrain's own, those its hook `import_weights` knows, plain ones.

    paths: one file, run directory or checkpoint, or the several files that the plugin puts together. Raises
    ConfigError for a file that is not there or no state dict, CheckpointError for one that is damaged or refused.
    """
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: there is no such weights file")
    if len(paths) == 1 and (own := _read_own(paths[0], plugin)) is not None:
        return own
    found: Any = plugins.first_result("import_weights", config=config, paths=list(paths))
    if found is not None and found is not NONE:
        weights: Weights = found
        return weights
    if len(paths) > 1:
        raise UsageError(f"{plugin} reads weights from one file at a time, not from {len(paths)}")
    return Weights(read_state(paths[0]))


def _read_own(path: Path, plugin: str) -> Weights | None:
    """Weights that medtrain wrote, with the options they were made with; None for other files."""
    if path.name == checkpoint.MODEL and (path.parent / checkpoint.MANIFEST).is_file():
        path = path.parent
    if path.is_dir():
        exported = read_run(path)
        own = exported.options.get(plugin, {})
        return Weights(exported.weights.state, own, exported.weights.notes)
    noted = read_about(path)
    if noted is None:
        return None
    state, made_for = read_state(path), noted.get("plugin")
    if made_for == plugin:
        return Weights(state, noted.get("options", {}))
    return Weights(state, notes=[f"{path.name} was made for the plugin {made_for!r}."])


@dataclass
class Exported:
    """The weights of a run that evaluation uses.

    run: the name of the run directory. folder: the checkpoint. plugin: the one that built the model, empty when it was
    handed to the Trainer. options: by plugin. about: what is noted in a file with them.
    """

    run: str
    folder: Path
    plugin: str
    options: dict[str, Any]
    weights: Weights
    about: dict[str, Any]


def read_run(path: Path, name: str | None = None) -> Exported:
    """The weights of a run directory, a split's folder or a checkpoint; CheckpointError for damaged ones."""
    folder = checkpoint_of(path, name)
    saved, problems = checkpoint.read_newest(folder)
    config = tomli.loads(saved.texts.get("config.toml", ""))
    options = config.get("plugins", {})
    plugin = _builder(config.get("run", {}).get("plugins", []))
    notes = [f"Damaged checkpoint passed over: {problem}" for problem in problems]
    weights = Weights(saved.model, _without_folders(options.get(plugin, {})), notes)
    try:
        run = Maps.containing(folder).path.resolve()
    except UsageError:  # a checkpoint that was taken out of its run
        run = folder.resolve()
    file = (folder / checkpoint.MODEL).resolve()
    sources = [source(file, str(file.relative_to(run.parent)))] if file.is_file() else []
    noted = {"plugin": plugin, "options": weights.options, "source": sources}
    return Exported(run.name, folder, plugin, options, weights, noted)


def _builder(plugins: list[str]) -> str:
    """The plugin of a run that is asked first for the model."""
    for name in reversed(plugins):
        if len(plugins) == 1 or "build_model" in load(name).hooks:
            return name
    return ""


def _without_folders(options: dict[str, Any]) -> dict[str, Any]:
    """Options for a file that may be given away: of files on this machine only their names."""
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in options.items()
    }


def checkpoint_of(path: Path, name: str | None = None) -> Path:
    """The checkpoint a path stands for: itself or, of a run directory or a split's folder, the one that is evaluated.

    That is the named one; without a name the best, else the last.
    """
    if (path / checkpoint.MANIFEST).is_file() and name is None:
        return path
    maps = Maps.containing(path)
    inside = path.resolve().relative_to(maps.path.resolve()).parts
    number = inside[0].removeprefix("split-") if inside else "0"
    split = maps.split(int(number) if number.isdecimal() else 0)
    chosen = split.best() or split.checkpoint("last") if name is None else split.checkpoint(name)
    if not checkpoint.is_there(chosen):
        known = ", ".join(folder.name for folder in split.checkpoints())
        raise CheckpointError(f"{split.path}: there is no checkpoint {chosen.name!r}; there are: {known or 'none'}")
    return chosen


def read_state(path: Path) -> State:
    """The state dict in a file, safetensors or of `torch.save` (alone, or under `model` or `state_dict`).

    Nothing that could run code is loaded. Raises ConfigError when it is no plain state dict, CheckpointError when it
    is damaged.
    """
    if _is_safetensors(path):
        try:
            return checkpoint.load_model_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged: {error}") from None
    try:
        # From memory: older releases of torch unpack real files that are tar archives.
        loaded: Any = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may fail in any way
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {named[1]}" if named else (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path}: not a plain state dict, and nothing else is loaded: {reason}") from None
    return plain_state(loaded, path)


def plain_state(loaded: Any, path: Path) -> State:
    """The state dict in what a file holds: itself, or what is under `model` or `state_dict`; ConfigError if none."""
    while isinstance(loaded, Mapping):
        inner = [loaded[name] for name in ("model", "state_dict") if isinstance(loaded.get(name), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ConfigError(f"{path}: not a state dict (tensors by name) but {type(loaded).__name__}")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ConfigError(f"{path}: not a state dict: under {key!r} is no tensor but {type(value).__name__}")
    return dict(loaded)


def read_about(path: Path) -> dict[str, Any] | None:
    """What medtrain noted in a safetensors file (plugin, options, source); None for files without."""
    if not _is_safetensors(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None
    if text is None:
        return None
    try:
        about: dict[str, Any] = json.loads(text)
        return about
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: metadata {METADATA!r} is not JSON: {error}") from None


def write(path: Path, state: Mapping[str, torch.Tensor], about: Mapping[str, Any] | None) -> None:
    """Write safetensors in one move, every tensor by its own name. about: what `read_about` will give."""
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    metadata = {METADATA: json.dumps(about, sort_keys=True)} if about is not None else {"format": "pt"}
    _put(path, lambda aside: save_file(tensors, aside, metadata=metadata))


def write_pickle(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write a plain state dict with `torch.save`, for tools that read nothing else."""
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}

    def save(aside: Path) -> None:
        with aside.open("wb") as file:  # given a name, torch writes it into the file
            torch.save(tensors, file)

    _put(path, save)


def about(plugin: str, options: Mapping[str, Any], paths: Sequence[Path]) -> dict[str, Any]:
    """What is noted in a file with weights that were read from others."""
    sources = [source(path) for path in paths if path.is_file()]
    for path in paths:
        sources += read_run(path).about["source"] if path.is_dir() else []
    return {"plugin": plugin, "options": _without_folders(dict(options)), "source": sources}


def source(path: Path, name: str = "") -> dict[str, str]:
    """Name and SHA-256 of a weights file."""
    with path.open("rb") as file:
        return {"file": name or path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def inspect(path: Path) -> tuple[State, dict[str, Any] | None]:
    """The tensors in a file, run directory or checkpoint, and what medtrain noted about them."""
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or run")
    if path.is_dir():
        exported = read_run(path)
        return exported.weights.state, exported.about
    try:
        return read_state(path), read_about(path)
    except ConfigError as error:
        raise UsageError(f"{error}\n`medtrain weights import PLUGIN {path}` may know how to read it") from None


def _put(path: Path, save: Any) -> None:
    try:
        with replace_file(path) as aside:
            save(aside)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be written ({error}); give another --out") from None


def _is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors: the length of its header, then the header, which is JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"
