"""The transformer: sizes, names of checkpoints, golden logits, published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import medtrain
import numpy as np
import pytest
import torch
from medtrain.errors import CheckpointError, ConfigError, DataError
from medtrain_plugins.sign.model.model import SignTransformer
from medtrain_plugins.sign.options import parse_size

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "sign.json").read_text())


def names(layers: int) -> list[str]:
    """Names of a checkpoint in the order in which the golden weights are numbered."""
    found = ["embedding.part_embed"]
    found += [f"embedding.{part}_proj.{end}" for part in ("pose", "face", "rh", "lh") for end in ("weight", "bias")]
    found += ["embedding.layer_norm.weight", "embedding.layer_norm.bias"]
    found += [f"embedding.input_bn.{end}" for end in ("weight", "bias", "running_mean", "running_var")]
    for block in range(layers):
        for kind in ("spatial", "temporal"):
            ends = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
            found += [f"blocks.{block}.{kind}_attention.{end}" for end in ends]
            found += [f"blocks.{block}.{kind}_norm.{end}" for end in ("weight", "bias")]
        found += [f"blocks.{block}.mlp.{end}" for end in ("0.weight", "0.bias", "3.weight", "3.bias")]
        found += [f"blocks.{block}.mlp_norm.{end}" for end in ("weight", "bias")]
    found += [f"attention_pool.attention_weights.{end}" for end in ("0.weight", "0.bias", "2.weight", "2.bias")]
    return [*found, "fc.weight", "fc.bias"]


def filled(model: SignTransformer, layers: int = 2) -> SignTransformer:
    state = model.state_dict()
    for number, name in enumerate(names(layers)):
        tensor = state[name]
        values = 0.1 * np.sin(0.7 * np.arange(tensor.numel()) + number).reshape(tensor.shape)
        is_scale = name.endswith("running_var") or name.endswith(("norm.weight", "input_bn.weight"))
        tensor.copy_(torch.from_numpy(values + is_scale))
    return model.eval()


@pytest.mark.parametrize("size", GOLDEN["parameters"])
def test_sizes_have_the_published_numbers_of_parameters(size: str) -> None:
    with torch.device("meta"):
        model = SignTransformer(502, *parse_size(size))
    counts = [sum(p.numel() for p in model.parameters()), sum(b.numel() for b in model.buffers())]
    assert counts == GOLDEN["parameters"][size]


def test_a_letter_alone_is_its_preset() -> None:
    assert parse_size("l") == parse_size("l_6_8") == (128, 6, 8)
    assert parse_size("s_16_10") == (32, 16, 10)
    for wrong in ("x_4_2", "s_4", "s_0_2", "s_4_2_"):
        with pytest.raises(ValueError, match="s_4_2"):
            parse_size(wrong)


def test_the_state_dict_has_the_published_names() -> None:
    state = SignTransformer(10, 16, 4, 2).state_dict()
    assert set(state) == {*names(2), "pos_encoder.pe", "embedding.input_bn.num_batches_tracked"}
    assert state["pos_encoder.pe"].shape == (1, 50, 1, 64)
    assert state["blocks.0.spatial_attention.in_proj_weight"].shape == (192, 64)


@pytest.mark.parametrize("case", GOLDEN["logits"], ids=lambda case: str(case["shape"]))
def test_golden_logits(case: dict[str, Any]) -> None:
    model = filled(SignTransformer(10, 16, 4, 2))
    x = np.sin(0.013 * np.arange(np.prod(case["shape"]))).reshape(case["shape"])
    with torch.no_grad():
        found = model({"keypoints": torch.from_numpy(x).float()})["logits"]
    assert found.numpy() == pytest.approx(np.array(case["expected"]), abs=1e-4)


def test_clips_of_the_wrong_shape_are_refused_in_words() -> None:
    model = SignTransformer(3, 16, 1, 1)
    for shape in ((2, 51, 736), (2, 50, 735), (50, 736)):
        with pytest.raises(DataError, match="1 to 50 frames"):
            model.logits(torch.zeros(shape))


def test_gradients_do_not_flow_between_the_clips_of_a_batch() -> None:
    model = SignTransformer(3, 16, 2, 1).eval()
    x = torch.randn(2, 8, 736, requires_grad=True)
    model.logits(x)[0].sum().backward()
    assert x.grad is not None and x.grad[0].any() and not x.grad[1].any()


def published(path: Path, model: SignTransformer) -> Path:
    """A checkpoint as the published trainer writes it."""
    optimizer = torch.optim.Adam(model.parameters())
    model.logits(torch.randn(2, 8, 736)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(state, path)
    return path


def test_a_published_checkpoint_loads_from_any_path(tmp_path: Path) -> None:
    model = SignTransformer(10, 16, 4, 2)
    path = published(tmp_path / "renamed.pth", model)
    loaded = medtrain.build_model("karsl", weights=path, signs="1-10", model_size="t_4_2")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(CheckpointError, match=r"fc\.weight"):
        medtrain.build_model("karsl", weights=path, signs="1-11", model_size="t_4_2")


def test_a_path_that_tells_the_size_is_enough(tmp_path: Path) -> None:
    path = published(tmp_path / "checkpoint_Nov21_02-59-46-signs_6_t_4_2" / "30.pth", SignTransformer(6, 16, 4, 2))
    assert medtrain.build_model("karsl", weights=path).fc.out_features == 6


def test_unknown_sizes_and_signs_are_configuration_errors() -> None:
    with pytest.raises(ConfigError, match="model_size"):
        medtrain.build_model("karsl", model_size="q_4_2")
    with pytest.raises(ConfigError, match="1 to 502"):
        medtrain.build_model("karsl", signs="1-503")
