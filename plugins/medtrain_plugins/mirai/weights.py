"""The pretrained aggregator of Mirai from an official transformer snapshot, a state dict or safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtrain.errors import CheckpointError, first_lines

if TYPE_CHECKING:
    from torch import Tensor

    from medtrain_plugins.mirai.model import AllImageTransformer

LANDMARK = "projection_layer.weight"
# Without influence on results; official files have them in other shapes (two classes) or under other names.
NOT_READ = ("kept_images_vec", "fc.", "pred_masked_img_fc.", "prob_of_failure_layer.triangular_mask")
OPTIONS = "hidden_dim, num_layers, num_heads, pool and risk_factors"


def load_transformer(path: str | Path, aggregator: AllImageTransformer) -> None:
    """Loads the weights of a file into the aggregator; tensors without influence on results stay as built.

    path: an official snapshot, or a state dict or safetensors of an aggregator or of a whole Mirai; found by key names.
    Raises CheckpointError if the file cannot be read or is not safe to read, if it has no aggregator or several, or one
    that was built with other options.
    """
    from medtrain_plugins.mammography.weights.snapshots import named_tensors, read_file

    root = read_file(path)
    tensors = named_tensors(root)
    prefixes = [key.removesuffix(LANDMARK) for key in tensors if f".{key}".endswith(f".{LANDMARK}")]
    if len(prefixes) != 1:
        raise CheckpointError(f"{path} holds {len(prefixes)} transformers of Mirai; exactly one is needed")
    expected = aggregator.state_dict()
    needed = [key for key in expected if not key.startswith(NOT_READ)]
    found = {key.removeprefix(prefixes[0]): tensor for key, tensor in tensors.items() if key.startswith(prefixes[0])}
    wrong = [f"{key} is missing" for key in needed if key not in found]
    wrong += [
        f"{key} is {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in needed
        if key in found and found[key].shape != expected[key].shape
    ]
    wrong += [
        f"{key} is of no use" for key in found if key.startswith(("pool.", "transformer.")) and key not in expected
    ]
    heads = _recorded_heads(root)
    built = aggregator.num_heads
    if heads not in (None, built):
        wrong.append(f"it was trained with {heads} attention heads, not {built}")
    if wrong:
        raise CheckpointError(
            f"{path} does not fit this transformer; {OPTIONS} must be those of the file:\n" + first_lines(wrong)
        )
    weights: dict[str, Tensor] = {key: found[key] if key in needed else own for key, own in expected.items()}
    aggregator.load_state_dict(weights)


def _recorded_heads(root: Any) -> int | None:
    """The number of attention heads from the arguments in a snapshot's modules; shapes do not show it."""
    from medtrain.weights import Shell

    from medtrain_plugins.mammography.weights.snapshots import children_of

    waiting, seen = [root], set()
    while waiting:
        value = waiting.pop()
        if not isinstance(value, dict | Shell) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Shell) and isinstance(arguments := value.attributes.get("args"), Shell):
            heads = arguments.attributes.get("num_heads")
            if isinstance(heads, int):
                return heads
        waiting += [child for _, child in children_of(value)]
    return None
