"""State dicts in files of any origin, and what medtrain noted with them; nothing in a file is run."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from medtrain.errors import CheckpointError, ConfigError
from medtrain.protocols.weights import State
from medtrain.rundir import checkpoint

# The one key of the metadata of a safetensors file that says what the weights are; its value is JSON.
METADATA = "medtrain"


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


def _is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors: the length of its header, then the header, which is JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"
