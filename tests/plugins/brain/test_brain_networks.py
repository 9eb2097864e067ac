from __future__ import annotations

from typing import Any

import pytest
import torch
from medtrain.errors import ConfigError
from medtrain_plugins.brain.model.networks import Conv5FC3, build_network

VIT = {"hidden_size": 48, "mlp_dim": 64, "num_layers": 2, "num_heads": 4}
SMALL_UNET = {"channels": [4, 8, 16], "strides": [2, 2]}


@pytest.mark.parametrize("size", [[33, 16, 20], [32, 32, 32], [2, 2, 2], [33, 20]])
def test_the_small_network_fits_any_size_of_image(size: list[int]) -> None:
    network = build_network("Conv5_FC3", "classification", [2, *size], 3, {"hidden": [16, 8]})
    image = torch.randn(4, 2, *size)
    assert network(image).shape == (4, 3)
    loss = network(image).square().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_halving_keeps_the_last_voxel_of_an_odd_axis() -> None:
    network = Conv5FC3([1, 9, 9, 9], 2, dropout=0.0).eval()
    image = torch.zeros(1, 1, 9, 9, 9)
    with torch.no_grad():
        before = network(image)
        image[0, 0, 8, 8, 8] = 100
        assert not torch.allclose(network(image), before)


def test_the_small_network_is_a_function_of_the_seed_and_its_arguments_are_kept() -> None:
    first, second = (torch.manual_seed(3) and Conv5FC3([1, 8, 8], 2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert (first.input_shape, first.outputs, first.hidden) == ([1, 8, 8], 2, [128, 32])


def test_checking_a_network_draws_nothing_and_leaves_it_as_it_was() -> None:
    torch.manual_seed(0)
    built = build_network("Conv5_FC3", "classification", [1, 8, 8, 8], 2, {})
    state = torch.get_rng_state()
    torch.manual_seed(0)
    plain = Conv5FC3([1, 8, 8, 8], 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert built.training
    assert all(torch.equal(a, b) for a, b in zip(built.state_dict().values(), plain.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("name", "task", "outputs", "options"),
    [
        ("DenseNet121", "classification", 3, {"init_features": 8, "growth_rate": 4, "block_config": [1, 1, 1, 1]}),
        ("ResNet18", "classification", 3, {}),
        ("SEResNet50", "regression", 1, {"layers": [1, 1, 1, 1]}),
        ("ViT", "classification", 3, VIT),
        ("UNet", "segmentation", 3, SMALL_UNET),
        ("AttentionUNet", "segmentation", 3, SMALL_UNET),
        ("AutoEncoder", "reconstruction", 1, {}),
    ],
)
@pytest.mark.parametrize("axes", [2, 3])
def test_networks_of_monai_are_completed_from_the_data(
    name: str, task: str, outputs: int, options: dict[str, Any], axes: int
) -> None:
    size = [32] * axes
    network = build_network(name, task, [1, *size], outputs, options).eval()
    with torch.no_grad():
        result = network(torch.randn(2, 1, *size))
    wanted = (2, outputs) if task in ("classification", "regression") else (2, outputs, *size)
    assert result.shape == wanted


def test_the_logits_of_a_transformer_are_not_squashed() -> None:
    network = build_network("ViT", "classification", [1, 16, 16], 2, VIT).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(20)
        assert network(torch.randn(8, 1, 16, 16)).abs().max() > 1


@pytest.mark.parametrize(
    ("name", "task", "shape", "options", "said"),
    [
        ("DensNet121", "classification", [1, 32, 32], {}, "did you mean 'DenseNet121'"),
        ("UNet", "classification", [1, 32, 32], {}, "needs (1, 2)"),
        ("UNet", "segmentation", [1, 31, 32], {}, "31 x 32"),
        ("UNet", "segmentation", [1, 32, 32], {"kernel": 5}, "did you mean 'kernel_size'"),
        ("Conv5_FC3", "segmentation", [1, 32, 32], {}, "use UNet"),
        ("Conv5_FC3", "classification", [1, 32, 32], {"channels": [4]}, "five"),
        ("DenseNet121", "classification", [1, 8, 8, 8], {}, "cannot take images of 8 x 8 x 8"),
        ("DenseNet121", "classification", [1, 32, 32], {"pretrained": True}, "not downloaded"),
        ("VarAutoEncoder", "reconstruction", [1, 32, 32], {}, "AutoEncoder"),
        ("Conv5_FC3", "classification", [1, 32], {}, "input_shape"),
    ],
)
def test_what_cannot_work_is_said_before_training(
    name: str, task: str, shape: list[int], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        build_network(name, task, shape, 2, options)
    assert said in str(error.value)
