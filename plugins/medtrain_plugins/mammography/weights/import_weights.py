"""Whole models from files of other projects: official Mirai snapshots, checkpoints of the published benchmark.

A checkpoint of the benchmark has the keys of our models. The official Mirai has two pickled modules, one with the image
encoder and one with the transformer over images. Their settings follow from the shapes of the tensors and from the
arguments in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medtrain.errors import CheckpointError, first_lines
from medtrain.protocols import Weights
from medtrain.weights import Stub
from torch import Tensor

from medtrain_plugins.mammography.weights.snapshots import (
    children_of,
    find_backbone,
    is_of_backbone,
    named_tensors,
    read_file,
)

# Names that only official files have; `triagular` is their spelling.
_OFFICIAL = re.compile(r"(?:^|\.)(?:layer[1-4]_[01]\.|downsampler\.)|upper_triagular_mask$")
_TRANSFORMER = "projection_layer.weight"
# Parts of the encoder's file that were only used to train it.
_TRAINING_PARTS = ("pool.", "fc.", "prob_of_failure_layer.")
_POOLS = ("Simple_AttentionPool", "GlobalMaxPool", "GlobalAvgPool")
# Arguments that are read.
_TOLD = {"num_heads", "transfomer_hidden_dim", "risk_factor_keys"}


def import_risk_weights(paths: Sequence[Path], encoder: str = "", risk_factors: Sequence[str] = ()) -> Weights:
    """The weights of one of the family's models, and the options to build it with.

    paths: safetensors, a state dict, a checkpoint of the benchmark, or the official files of Mirai, in any order.
    encoder: the name of the model's image encoder (`encoder_name`); without one, there are no official files for it.
    risk_factors: the names of those the model can predict, in its order. The caller checks the keys against its model.
    Raises CheckpointError for files that cannot be read, are not safe to read, or are parts of Mirai that do not form
    one model.
    """
    roots = {path: read_file(path) for path in paths}
    tensors = {path: _state_of(root) for path, root in roots.items()}
    for path, found in tensors.items():
        if not found:
            raise CheckpointError(f"{path} holds no tensors")
    official = any(_OFFICIAL.search(key) for found in tensors.values() for key in found)
    if encoder and (official or len(paths) > 1):
        return _mirai(roots, tensors, encoder, risk_factors)
    if len(paths) > 1:
        raise CheckpointError(f"one file is expected, not {len(paths)}: {', '.join(map(str, paths))}")
    notes = []
    root = roots[paths[0]]
    if isinstance(root, dict) and {"best_c_index", "global_step"} <= root.keys():
        notes.append(
            "This is a checkpoint of the published benchmark: its numbers are those of a model with compat=reference."
        )
    return Weights(tensors[paths[0]], notes=notes)


def _state_of(root: Any) -> dict[str, Tensor]:
    """The state dict in a file: of the pickled module, or under `model` or `state_dict`."""
    while isinstance(root, dict):
        inner = [root[name] for name in ("model", "state_dict") if isinstance(root.get(name), dict | Stub)]
        if not inner:
            break
        root = inner[0]
    return named_tensors(root)


def _mirai(
    roots: dict[Path, Any], tensors: dict[Path, dict[str, Tensor]], encoder: str, risk_factors: Sequence[str]
) -> Weights:
    """One Mirai from the files with its parts."""
    weights = Weights({}, {"input_norm": "mirai", "orientation": "mirai"})
    for path, found in tensors.items():
        state: dict[str, Tensor] = {}
        rest = found
        if any(key.endswith(_TRANSFORMER) for key in rest):
            transformer, rest = _transformer(rest, path)
            state |= {f"transformer.{key}": tensor for key, tensor in transformer.items()}
            weights.options |= _transformer_options(roots[path], transformer, risk_factors, path, weights.notes)
        if any(is_of_backbone(key) for key in rest) or not state:
            prefix, backbone = find_backbone(rest, path)
            state |= {f"{encoder}.{key}": tensor for key, tensor in backbone.items()}
            rest = {key: tensor for key, tensor in rest.items() if not is_of_backbone(key)}
            ignored = [key for key in rest if key.removeprefix(prefix).startswith(_TRAINING_PARTS)]
            rest = {key: tensor for key, tensor in rest.items() if key not in ignored}
            if ignored:
                weights.notes.append(
                    f"{len(ignored)} tensors of {path.name} are left out: they served to train the encoder "
                    f"({', '.join(part + '*' for part in _TRAINING_PARTS)})."
                )
        if rest:
            raise CheckpointError(f"{path} holds {len(rest)} tensors that Mirai does not have:\n{first_lines([*rest])}")
        if twice := [key for key in state if key in weights.state]:
            raise CheckpointError(f"{path} holds a part that another of the files holds too:\n{first_lines(twice)}")
        weights.state |= state
    names = ", ".join(str(path) for path in tensors)
    parts = {key.partition(".")[0] for key in weights.state}
    if "transformer" not in parts:
        raise CheckpointError(
            f"{names} is the image encoder of Mirai, not the whole: name the file of its transformer too; "
            "to start training another model from it, name it in that model's option encoder_weights"
        )
    if encoder.partition(".")[0] not in parts:
        raise CheckpointError(f"{names} is the transformer of Mirai, not the whole: name the file of its encoder too")
    return weights


def _transformer(tensors: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The transformer's tensors with our names, and the other tensors."""
    places = [key.removesuffix(_TRANSFORMER) for key in tensors if key.endswith(_TRANSFORMER)]
    if len(places) > 1:
        raise CheckpointError(f"{path} holds {len(places)} transformers, under {', '.join(map(repr, places))}")
    (prefix,) = places
    inside = {
        key.removeprefix(prefix).replace("upper_triagular_mask", "triangular_mask"): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
    return inside, {key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)}


def _transformer_options(
    root: Any, transformer: dict[str, Tensor], risk_factors: Sequence[str], path: Path, notes: list[str]
) -> dict[str, Any]:
    """The options of Mirai for this transformer, from its shapes and the arguments in the file."""
    arguments = _arguments(root)
    hidden = transformer[_TRANSFORMER].shape[0]
    layers = {match[0] for key in transformer if (match := re.match(r"transformer\.transformer_layer_\d+\.", key))}
    options: dict[str, Any] = {"hidden_dim": hidden, "num_layers": len(layers)}
    heads = arguments.get("num_heads")
    if type(heads) is int and heads > 0:
        options["num_heads"] = heads
    else:
        notes.append(
            f"{path.name} does not tell the number of attention heads: --set mirai.num_heads=N must give it, "
            "unless the default is right."
        )
    if arguments.get("transfomer_hidden_dim", hidden) != hidden:
        notes.append(f"{path.name} states another hidden size than that of its tensors, which is {hidden}.")
    if pool := _pool(root, transformer):
        options["pool"] = pool
    factors = [match[1] for key in transformer if (match := re.match(r"pool\.(?!attention_)(\w+)_fc\.weight", key))]
    options["risk_factors"] = bool(factors)
    order = arguments.get("risk_factor_keys")
    order = order if isinstance(order, list) and set(order) == set(factors) else factors
    # Their values are concatenated, so the following layers depend on the order.
    if factors and risk_factors and order != list(risk_factors):
        raise CheckpointError(
            f"{path} has {len(order)} risk factors, {', '.join(order)}; Mirai here takes these "
            f"{len(risk_factors)}, in this order: {', '.join(risk_factors)}"
        )
    return options


def _pool(root: Any, transformer: dict[str, Tensor]) -> str:
    """The pool over images, recognised by its tensors or by the class of the pickled module."""
    if any(key.endswith("attention_fc.weight") for key in transformer):
        return _POOLS[0]
    return next((name for stub in _modules(root) if (name := type(stub).__name__) in _POOLS), "")


def _arguments(root: Any) -> dict[str, Any]:
    """The arguments of the run that made a pickled module; none in a state dict."""
    for stub in _modules(root):
        for value in stub.attributes.values():
            if type(value).__name__ == "Namespace" and isinstance(value, Stub) and _TOLD & value.attributes.keys():
                return value.attributes
    return {}


def _modules(root: Any) -> Iterator[Stub]:
    """The pickled modules in a file, outer ones first."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, dict | Stub) and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, Stub):
                yield value
            waiting += [child for _, child in children_of(value)]
