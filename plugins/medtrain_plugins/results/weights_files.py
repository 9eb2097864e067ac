"""Weights written to one file, and what is noted in it: plugin, options, where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from medtrain.errors import ConfigError, UsageError
from medtrain.rundir import replace_file, sha256
from medtrain.weights import METADATA, SavedModel, State, read_model
from safetensors import SafetensorError
from safetensors.torch import save_file


def write(path: Path, state: State, about: Mapping[str, Any] | None) -> None:
    """Write safetensors in one move, every tensor by its own name. about: what `read_about` will give."""
    metadata = {METADATA: json.dumps(about, sort_keys=True)} if about is not None else {"format": "pt"}
    _write(path, state, lambda tensors, aside: save_file(tensors, aside, metadata=metadata))


def write_pickle(path: Path, state: State) -> None:
    """Write a plain state dict with `torch.save`, for tools that read nothing else."""

    def save(tensors: State, aside: Path) -> None:
        with aside.open("wb") as file:  # given a name, torch writes it into the file
            torch.save(tensors, file)

    _write(path, state, save)


def note(plugin: str, options: Mapping[str, Any], paths: Sequence[Path]) -> dict[str, Any]:
    """What is noted in a file with weights that were read from others."""
    sources: list[dict[str, str]] = []
    for path in paths:
        sources += note_of(read_model(path))["source"] if path.is_dir() else [_source(path, path.name)]
    return {"plugin": plugin, "options": _without_folders(options), "source": sources}


def note_of(model: SavedModel) -> dict[str, Any]:
    """What is noted in a file with the weights of a trained model; as it is, where a file has such a note."""
    if model.about is not None:
        return model.about
    base = (model.run.path if model.run else model.path).resolve().parent
    file = model.file.resolve()
    sources = [_source(file, str(file.relative_to(base)))] if file.is_file() else []
    return {"plugin": model.plugin, "options": _without_folders(model.weights.options), "source": sources}


def inspect(path: Path) -> SavedModel:
    """The model in a file, run directory or checkpoint, for people who want to see what is in it."""
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or run")
    try:
        return read_model(path)
    except ConfigError as error:
        raise UsageError(f"{error}\n`medtrain weights import PLUGIN {path}` may know how to read it") from None


def _write(path: Path, state: State, save: Callable[[State, Path], None]) -> None:
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    try:
        with replace_file(path) as aside:
            save(tensors, aside)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be written ({error}); give another --out") from None


def _source(path: Path, name: str) -> dict[str, str]:
    return {"file": name, "sha256": sha256(path)}


def _without_folders(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for a file that may be given away: of files on this machine only their names."""
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in options.items()
    }
