"""Checkpoints: a folder of safetensors and JSON that is either whole and verified, or not there.

Written aside, synced, then renamed; the checkpoint that had the name before stays as its predecessor until the
next write, so that there is always one to go back to. No pickle is written, and none is read.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from medtrain.errors import CheckpointError
from medtrain.rundir.files import sha256, sync_path

if TYPE_CHECKING:  # commands that only look at a run start without torch
    import torch

SCHEMA = 1
MODEL, TENSORS, STATE, MANIFEST = "model.safetensors", "state.safetensors", "state.json", "checkpoint.json"


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    model: the weights that evaluation uses. state: everything else a resume needs, a tree of dicts, lists, numbers,
    strings and tensors. facts: small JSON (step, epoch, membership digest, ...). texts: further files by name.
    """

    model: dict[str, torch.Tensor]
    state: dict[str, Any]
    facts: dict[str, Any]
    texts: dict[str, str]


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint under this name, atomically; the one that had the name stays as `predecessor(folder)`."""
    from safetensors.torch import save_file

    aside = _aside(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors, aliases = _storable(checkpoint.model)
    # One key only: safetensors writes several in random order, and equal states shall be equal files.
    metadata = {"aliases": json.dumps(aliases)} if aliases else {"format": "pt"}
    save_file(tensors, aside / MODEL, metadata=metadata)
    state_tensors: dict[str, torch.Tensor] = {}
    tree = _pack(checkpoint.state, state_tensors, "")
    save_file(state_tensors, aside / TENSORS, metadata={"format": "pt"})
    (aside / STATE).write_text(json.dumps(tree, allow_nan=False), encoding="utf-8")
    for name, text in checkpoint.texts.items():
        (aside / name).write_text(text, encoding="utf-8")
    checksums = {path.name: sha256(path) for path in sorted(aside.iterdir())}
    manifest = {"schema": SCHEMA, **checkpoint.facts, "sha256": checksums}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False), encoding="utf-8")
    for path in aside.iterdir():
        sync_path(path)
    sync_path(aside)
    _put(aside, folder)


def link(source: Path, folder: Path) -> None:
    """The same checkpoint under a second name, atomically; its files are hard links where the disk allows it."""
    aside = _aside(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for path in source.iterdir():
        try:
            os.link(path, aside / path.name)
        except OSError:
            shutil.copy2(path, aside / path.name)
            sync_path(aside / path.name)
    sync_path(aside)
    _put(aside, folder)
    shutil.rmtree(predecessor(folder), ignore_errors=True)


def predecessor(folder: Path) -> Path:
    """Where the previous checkpoint of this name is."""
    return folder.with_name(f".{folder.name}.previous")


def is_there(folder: Path) -> bool:
    """Whether `read_newest` has something to look at."""
    return any(candidate.is_dir() for candidate in _candidates(folder))


def _candidates(folder: Path) -> tuple[Path, Path, Path]:
    # A crash between the two renames of a write leaves a whole checkpoint under the aside name.
    return folder, _aside(folder), predecessor(folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def read(folder: Path) -> Checkpoint:
    """A verified checkpoint; CheckpointError names what is missing or damaged."""
    from safetensors.torch import load_file

    manifest = read_manifest(folder)
    for name, wanted in manifest["sha256"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder}: damaged: {name} is missing")
        if sha256(path) != wanted:
            raise CheckpointError(f"{folder}: damaged: {name} does not match its checksum")
    try:
        model = load_model_file(folder / MODEL)
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder}: damaged: {error}") from None
    state = _unpack(json.loads((folder / STATE).read_text(encoding="utf-8")), tensors)
    texts = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in manifest["sha256"]
        if name not in (MODEL, TENSORS, STATE)
    }
    facts = {key: value for key, value in manifest.items() if key not in ("schema", "sha256")}
    return Checkpoint(model, state, facts, texts)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The facts of a checkpoint, without loading it."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: not a checkpoint: {MANIFEST} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: damaged: {MANIFEST}: {error}") from None
    if manifest.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{folder}: written with checkpoint schema {manifest.get('schema')}, this medtrain reads {SCHEMA}"
        )
    return manifest


def read_newest(folder: Path) -> tuple[Checkpoint, list[str]]:
    """The checkpoint of this name or, when it is damaged, its predecessor; with what was wrong."""
    problems: list[str] = []
    for candidate in _candidates(folder):
        if candidate.is_dir():
            try:
                return read(candidate), problems
            except CheckpointError as error:
                problems.append(str(error))
    if problems:
        raise CheckpointError("no usable checkpoint:\n  - " + "\n  - ".join(problems))
    raise CheckpointError(f"{folder}: there is no such checkpoint")


def load_model_file(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a `model.safetensors`, tied weights restored."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    for alias, name in json.loads(metadata.get("aliases", "{}")).items():
        tensors[alias] = tensors[name]
    return tensors


def remove(folder: Path) -> None:
    """Remove a checkpoint so that a crash on the way leaves nothing that looks like one."""
    if folder.is_dir():
        gone = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _put(aside: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(predecessor(folder), ignore_errors=True)
        folder.rename(predecessor(folder))
    aside.rename(folder)
    sync_path(folder.parent)


def _storable(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Contiguous tensors that share no memory, and the names of tied ones."""
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first_with: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in first_with:
            aliases[name] = first_with[place]
        else:
            first_with[place] = name
            tensors[name] = _own(tensor)
    return tensors, aliases


def _own(tensor: torch.Tensor) -> torch.Tensor:
    from torch import contiguous_format

    tensor = tensor.detach()
    if tensor.device.type == "cpu" and tensor.is_contiguous() and _owns_storage(tensor):
        return tensor
    return tensor.to("cpu", copy=True, memory_format=contiguous_format)


def _owns_storage(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _pack(value: Any, tensors: dict[str, torch.Tensor], at: str) -> Any:
    """A tree as JSON: tensors go into `tensors` under their path; what JSON lacks is marked."""
    from torch import Tensor

    if isinstance(value, Tensor):
        name = at or "tensor"
        tensors[name] = _own(value)
        return {"$tensor": name}
    if isinstance(value, dict):
        items = [[key, _pack(item, tensors, f"{at}/{key}")] for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(items)
        return {"$items": items}
    if isinstance(value, tuple):
        return {"$tuple": [_pack(item, tensors, f"{at}/{i}") for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_pack(item, tensors, f"{at}/{i}") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"checkpoint state at {at}: {type(value).__name__} cannot be stored; use numbers, text or tensors")


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$items" in value:
        return {key: _unpack(item, tensors) for key, item in value["$items"]}
    if "$tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["$tuple"])
    if "$float" in value:
        return float(value["$float"])
    return {key: _unpack(item, tensors) for key, item in value.items()}


def folders(parent: Path) -> Iterator[Path]:
    """The checkpoints in a folder, oldest step first."""
    found = [path.parent for path in parent.glob(f"*/{MANIFEST}") if not path.parent.name.startswith(".")]
    return iter(sorted(found, key=lambda path: (read_manifest(path).get("step", 0), path.name)))
