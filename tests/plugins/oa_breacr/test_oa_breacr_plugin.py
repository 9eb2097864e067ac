"""The plugin `oa_breacr`: its options, presets, and where the encoder's weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from medtrain.config import Layers, RunConfig
from medtrain.errors import CheckpointError, ConfigError
from medtrain.plugins import Plugins
from medtrain_plugins.oa_breacr import OABreaCRPlugin
from medtrain_plugins.oa_breacr.encoder import fetch_imagenet, load_encoder, resnet_encoder
from medtrain_plugins.oa_breacr.model import OABreaCR
from medtrain_plugins.oa_breacr.options import OABreaCROptions
from pydantic import ValidationError
from safetensors.torch import save_file

PLUGIN = OABreaCRPlugin()
SMALL = {"image_size": [64, 32], "img_size": [96, 64]}


def config(**options: Any) -> RunConfig:
    layers = Layers()
    layers.add({"plugins": {"oa_breacr": SMALL | options}}, "test")
    return layers.build({"oa_breacr": OABreaCROptions})


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18()


def holds(state: dict[str, torch.Tensor], resnet: torch.nn.Module) -> bool:
    encoder = resnet_encoder("resnet18")[0]
    encoder.load_state_dict(state)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(
            encoder.eval()(images).mean(dim=(2, 3)) @ resnet.fc.weight.T + resnet.fc.bias, resnet(images)
        )


def test_the_core_takes_it_as_a_plugin():
    plugins = Plugins.of([PLUGIN])
    assert {"build_model", "build_data", "build_loss", "predict", "plugin_options"} <= plugins.loaded[0].hooks.keys()


def test_options_resolve():
    options = OABreaCROptions()
    assert (options.encoder_norm, options.image_orientation, options.pool_size) == ("none", "as_is", (2048, 1664))
    assert OABreaCROptions(encoder_weights="none").encoder_norm == "none"
    assert OABreaCROptions(encoder_weights="imagenet").encoder_norm == "imagenet"
    assert OABreaCROptions(encoder_weights="imagenet").image_orientation == "as_is"
    assert OABreaCROptions(encoder_weights="a.pth", input_norm="half").encoder_norm == "half"
    assert OABreaCROptions(image_size=(96, 64)).pool_size == (96, 64)
    assert OABreaCROptions(image_size=None, img_size=(128, 96)).pool_size == (128, 96)
    assert OABreaCROptions(alpha="1e-5").alpha == 1e-5
    with pytest.raises(ValidationError, match="100 x 96 are not"):
        OABreaCROptions(img_size=(100, 96))
    with pytest.raises(ValidationError, match="resnet18"):
        OABreaCROptions(arch="vgg16")
    with pytest.raises(ValidationError, match="class_weights"):
        OABreaCROptions(class_weights=[1, 2])


def test_options_reach_the_model_and_the_loss():
    built = config(
        arch="resnet34", use_poe=False, use_sto=False, max_t=7, registration_weight=0.5, input_norm="half",
        compat="reference", distance="WassersteinDistance", alpha=1, beta=2, margin=3, bce_weight=4, mean_weight=5,
        variance_weight=6, class_weights=[1, 2, 3, 4, 5, 6],
    ).with_fresh_model()  # fmt: skip
    model = PLUGIN.build_model(built)
    assert len(model.model["model"][6]) == 6
    assert model.pooling.size == (3, 2)
    assert (model.use_poe, model.use_sto, model.max_t, model.registration_weight) == (False, False, 7, 0.5)
    assert model.image_norm == "half"
    loss = PLUGIN.build_loss(built, model)
    assert (loss.compat, loss.use_poe, loss.distance.__name__) == ("reference", False, "wasserstein")
    assert (loss.alpha, loss.beta, loss.margin) == (1, 2, 3)
    assert (loss.bce_weight, loss.mean_weight, loss.variance_weight) == (4, 5, 6)
    assert loss.class_weights == (1, 2, 3, 4, 5, 6)


def test_the_encoder_from_files_of_any_layout(resnet, tmp_path):
    state = resnet.eval().state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "torchvision.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "wrapped.pth")
    model = OABreaCR(img_size=(64, 32))
    model.get_submodule(model.encoder_name).load_state_dict(load_encoder(tmp_path / "torchvision.pth", "resnet18"))
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    save_file(model.model["model"].state_dict(), tmp_path / "encoder.safetensors")
    for name in ("torchvision.pth", "wrapped.pth", "whole.safetensors", "encoder.safetensors"):
        assert holds(load_encoder(tmp_path / name, "resnet18"), resnet), name
    built = PLUGIN.build_model(config(encoder_weights=str(tmp_path / "torchvision.pth")))
    assert torch.equal(built.model["model"][0].weight, resnet.conv1.weight)
    assert built.image_norm == "imagenet"


def test_files_that_do_not_fit_are_refused(resnet, tmp_path):
    state = resnet.state_dict()
    path = tmp_path / "weights.pth"
    for bad, message in [
        ({k: v for k, v in state.items() if k != "layer2.0.bn1.weight"}, r"missing: 5\.0\.bn1\.weight"),
        (state | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, r"0\.weight: \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)"),
        (torchvision.models.resnet34().state_dict(), r"a resnet18 \(oa_breacr\.arch\):\n.*unknown: layer1\.2\."),
        ({"a": state, "b": dict(state)}, "2 residual networks instead of one"),
        ({"weight": torch.ones(2)}, "0 residual networks instead of one"),
    ]:
        torch.save(bad, path)
        with pytest.raises(CheckpointError, match=message):
            load_encoder(path, "resnet18")
    path.write_bytes(b"not a file of weights")
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        load_encoder(path, "resnet18")
    with pytest.raises(ConfigError, match=r"plugins\.oa_breacr\.encoder_weights: there is no file"):
        PLUGIN.build_model(config(encoder_weights=str(tmp_path / "none.pth")))
    with pytest.raises(ConfigError, match=r"plugins\.oa_breacr\.encoder_weights: say what"):
        PLUGIN.build_model(config())
    with pytest.raises(ConfigError, match=r"plugins\.oa_breacr\.encoder_weights: say what"):
        PLUGIN.build_data(config())


def test_imagenet_weights_come_from_torchs_cache(resnet, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    name = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(resnet.eval().state_dict(), cache / name)
    assert holds(fetch_imagenet("resnet18"), resnet)


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ConfigError, match=r"resnet18 could not be fetched .*download https://.*encoder_weights=FILE"):
        PLUGIN.build_model(config(encoder_weights="imagenet"))


@pytest.mark.parametrize("preset", ["demo", "paper"])
def test_presets_are_valid(preset):
    import medtrain_plugins.oa_breacr as package

    layers = Layers()
    layers.add_file(Path(str(package.__file__)).parent / "presets" / f"{preset}.toml")
    built = layers.build({"oa_breacr": OABreaCROptions})
    options = built.options("oa_breacr")
    if preset == "paper":
        assert (built.data.batch_size, built.optimization.num_epochs, built.optimization.weight_decay) == (12, 30, 1e-6)
        assert (built.optimization.learning_rate, options.alpha, options.beta) == (5e-5, 1e-5, 1e-4)
        assert options.encoder_weights == ""  # to be given
    else:
        assert options.demo_patients > 0 and options.encoder_weights == "none"
