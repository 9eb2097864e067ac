"""The plugin `imgfeatalign`: its pretrained parts, its loss, and what it refuses or warns of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain import build_model
from medtrain.config import Layers, RunConfig
from medtrain.errors import ConfigError
from medtrain_plugins.imgfeatalign import ImgFeatAlignPlugin
from medtrain_plugins.imgfeatalign.model import ImgFeatAlign
from medtrain_plugins.mammography.model.backbone import mirai_backbone
from medtrain_plugins.mammography.model.registration import MammoRegNet


def configured(**options: Any) -> RunConfig:
    plugin = ImgFeatAlignPlugin()
    layers = Layers()
    layers.add({"plugins": {plugin.name: options}}, "test")
    return layers.build({plugin.name: plugin.plugin_options()})


def test_pretrained_parts_are_loaded_and_frozen(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = {"registration": MammoRegNet(), "encoder_weights": mirai_backbone()}
    files = {name: str(tmp_path / f"{name}.pth") for name in parts}
    for name, part in parts.items():
        torch.save(part.state_dict(), files[name])
    model = ImgFeatAlignPlugin().build_model(configured(**files))
    for name, part in (("mammo_reg_net", parts["registration"]), ("encoder", parts["encoder_weights"])):
        loaded = model.get_submodule(name).state_dict()
        assert all(torch.equal(tensor, loaded[key]) for key, tensor in part.state_dict().items()), name
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"risk_model"}
    assert model.input_norm == "mirai"  # what the encoder's weights expect


def test_a_model_can_be_built_without_any_file() -> None:
    model = build_model("imgfeatalign", compat="reference")
    assert isinstance(model, ImgFeatAlign) and model.compat == "reference" and len(model.state_dict()) == 432
    assert len(build_model("imgfeatalign", registration="none").state_dict()) == 150


def test_the_head_of_the_prior_exam_learns_from_its_own_labels() -> None:
    with torch.device("meta"):
        model = ImgFeatAlign(registration="none")
    loss = ImgFeatAlignPlugin().build_loss(configured(), model)
    masks = {"y_mask": torch.ones(2, 5), "y_mask_prior": torch.zeros(2, 5)}
    assert {name: float(weight) for name, weight in loss.weights(masks).items()} == {"fused": 10, "cur": 10, "pri": 0}


def test_what_is_missing_or_cannot_be_is_said(caplog: pytest.LogCaptureFixture) -> None:
    plugin = ImgFeatAlignPlugin()
    with pytest.raises(ConfigError, match=r"imgfeatalign\.registration.*\n.*imgfeatalign\.encoder_weights"):
        plugin.build_model(configured())
    with pytest.raises(ConfigError, match=r"num_heads.*divide"):
        configured(num_heads=7)
    plugin.build_model(configured(registration="none", encoder_weights="none"))
    assert "stays random" in caplog.text
    caplog.clear()
    plugin.build_model(configured(registration="none", encoder_weights="none", finetune_encoder=True))
    assert not caplog.text
