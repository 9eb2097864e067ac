"""LMV-Net: checkpoint compatibility, its block against golden values, its whole against a plain composition."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.lmv_net.model import DualStreamBlock, LMVNet
from torch.nn import functional as F
from torch.testing import assert_close

SIZE = (2, 96, 64)


@pytest.fixture(scope="module")
def model(formula_weights) -> LMVNet:
    return formula_weights(LMVNet())


@pytest.fixture(scope="module")
def batch(formula_image) -> dict[str, Any]:
    keys = ("current_image_cc", "previous_image_cc", "current_image_mlo", "previous_image_mlo")
    images = {key: formula_image(s, *SIZE).float() for s, key in enumerate(keys)}
    return images | {"time_gap": torch.tensor([1.0, 3.0]), "target": torch.zeros(2, 5), "y_mask": torch.ones(2, 5)}


def with_options(model: LMVNet, **options: str | bool) -> LMVNet:
    """The same weights under other options."""
    with torch.device("meta"):
        other = LMVNet(**options)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.eval()


def predict(model: LMVNet, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model(batch)


def test_keys_and_shapes_are_those_of_checkpoints(model, golden):
    listed = {k: tuple(shape) for k, shape, _ in golden("formula_lmv_net").inputs["state_dict_keys"] if k[0] != "<"}
    for key, shape, _ in golden("formula_mammoregnet").inputs["state_dict_keys"]:
        listed[f"longitudinal_feat_processor.mammo_reg_net.{key}"] = tuple(shape)
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == listed
    assert len(listed) == golden("formula_lmv_net").inputs["n_state_dict_keys"] == 434


def test_parameter_counts(model):
    assert sum(p.numel() for p in model.parameters()) == 58_524_526
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 53_688_390
    with torch.device("meta"):
        frozen, alone = LMVNet(finetune_encoder=False), LMVNet(registration="none")
    assert sum(p.numel() for p in frozen.parameters() if p.requires_grad) == 53_688_390 - 11_176_512
    assert sum(p.numel() for p in alone.parameters()) == 53_688_390


def test_dual_stream_block(golden):
    case = golden("lmv_cross_attention_block")
    block = case.load_into(DualStreamBlock(8, 2, dropout=0.3, drop_path=0.2, ffn_ratio=2))
    f_cc, f_mlo = block(case.tensor("f_cc"), case.tensor("f_mlo"))
    assert_close(f_cc, case.tensor("f_cc_out"), rtol=1e-8, atol=1e-8)
    assert_close(f_mlo, case.tensor("f_mlo_out"), rtol=1e-8, atol=1e-8)


@pytest.fixture(scope="module")
def image_sets(model, batch) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Per view, each image set on its own: features of current and prior, registration flow."""
    parts = model.longitudinal_feat_processor
    found = {}
    with torch.no_grad():
        for view in ("cc", "mlo"):
            current, prior = batch[f"current_image_{view}"], batch[f"previous_image_{view}"]
            f_cur, f_pri = (parts.encoder(image.repeat(1, 3, 1, 1)) for image in (current, prior))
            found[view] = (f_cur, f_pri, parts.mammo_reg_net(current, prior)[1])
    return found


def feature_map(f_cur, f_pri, flow, time, compat: str, aligned: bool) -> torch.Tensor:
    """The published description, with grid_sample."""
    (h, w), (height, width) = f_cur.shape[2:], flow.shape[2:]
    flow = F.interpolate(flow, (h, w), mode="bilinear", align_corners=True)
    if compat == "fixed":
        dy, dx = flow[:, 0] * h / height, flow[:, 1] * w / width
    else:
        dx, dy = flow[:, 0] * w / width, flow[:, 1] * h / height
    y = torch.linspace(-1, 1, h).view(1, h, 1) + dy * 2 / (h - 1)
    x = torch.linspace(-1, 1, w).view(1, 1, w) + dx * 2 / (w - 1)
    f_al = F.grid_sample(f_pri, torch.stack([x, y], dim=-1), align_corners=True)
    return torch.cat([f_cur, f_al if aligned else f_pri, (f_cur - f_al).abs() + time[:, :, None, None]], dim=1)


@pytest.mark.parametrize(("compat", "aligned"), [("fixed", False), ("reference", False), ("fixed", True)])
def test_one_pass_over_all_images_equals_one_per_image_set(model, batch, image_sets, compat, aligned):
    time = model.longitudinal_feat_processor.positional_encoding.encode(batch["time_gap"])
    with torch.no_grad():
        views = [feature_map(*image_sets[view], time, compat, aligned) for view in ("cc", "mlo")]
        pooled = [f.mean(dim=(2, 3)) for f in model.cross_attn_blocks[0](*views)]
        expected = model.cumulative_risk(model.view_fc(torch.cat(pooled, dim=1)))
    out = predict(with_options(model, compat=compat, align_prior=aligned), batch)["risk_multi"]
    assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_outputs_and_what_options_change(model, batch):
    fixed = predict(model, batch)
    assert set(fixed) == {"risk_multi", "risk_cc", "risk_mlo"}
    for logits in fixed.values():
        assert logits.shape == (2, 5)
        assert logits.isfinite().all()
        assert (logits.diff(dim=1) >= 0).all()
    for options in ({"compat": "reference"}, {"align_prior": True}, {"input_norm": "mirai"}):
        other = predict(with_options(model, **options), batch)
        assert not torch.allclose(other["risk_multi"], fixed["risk_multi"], rtol=1e-4, atol=1e-5), options


def test_without_registration_the_prior_stays_in_place(model, batch):
    with torch.device("meta"):
        alone = LMVNet(registration="none")
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if "mammo_reg_net" not in k}, assign=True)
    same = dict(batch)
    for view in ("cc", "mlo"):
        same[f"previous_image_{view}"] = batch[f"current_image_{view}"]
    seen = {}
    hook = alone.longitudinal_feat_processor.positional_encoding.register_forward_pre_hook(
        lambda module, inputs: seen.update(difference=inputs[0])
    )
    predict(alone.eval(), same)
    hook.remove()
    assert seen["difference"].abs().max() == 0
    assert not any("mammo_reg_net" in key for key in alone.state_dict())


def test_mirai_normalisation_reaches_the_encoder_only(model, batch):
    other = with_options(model, input_norm="mirai")
    seen: dict[str, torch.Tensor] = {}
    parts = other.longitudinal_feat_processor
    parts.encoder.register_forward_pre_hook(lambda module, inputs: seen.update(encoder=inputs[0]))
    parts.mammo_reg_net.register_forward_pre_hook(lambda module, inputs: seen.update(registration=inputs[0]))
    predict(other, batch)
    images = torch.cat([batch["current_image_cc"], batch["current_image_mlo"]])
    assert torch.equal(seen["registration"], images)
    expected = (images * 65535 - 7047.99) / 12005.5
    assert_close(seen["encoder"][:4], expected.expand(-1, 3, -1, -1))


def test_pairs_are_registered_in_turn_and_each_with_its_own(model, batch, monkeypatch):
    """However many at a time: the same risks; one at a time where images are large."""
    together = predict(model, batch)
    sizes: list[int] = []
    network = model.longitudinal_feat_processor.mammo_reg_net
    hook = network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    for pixels, expected in ((96 * 64 - 1, [1, 1, 1, 1]), (3 * 96 * 64, [3, 1])):
        monkeypatch.setattr("medtrain_plugins.mammography.model.risk_model.PIXELS_AT_ONCE", pixels)
        found = predict(model, batch)
        assert sizes == expected
        sizes.clear()
        for name, risk in together.items():
            assert_close(found[name], risk)
    hook.remove()


def small_batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    keys = ("current_image_cc", "current_image_mlo", "previous_image_cc", "previous_image_mlo")
    images = {key: torch.rand(2, 1, 64, 32, generator=generator) for key in keys}
    return images | {"time_gap": torch.tensor([1, 2])}


def test_frozen_parts_stay_frozen_in_training():
    torch.manual_seed(0)
    model = LMVNet(finetune_encoder=False).train()
    parts = model.longitudinal_feat_processor
    assert model.training and not parts.encoder.training and not parts.mammo_reg_net.training
    before = {key: tensor.clone() for key, tensor in parts.state_dict().items()}
    sum(model(small_batch()).values()).sum().backward()
    for key, tensor in parts.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert all(p.grad is None for p in parts.parameters())
    assert model.view_fc.weight.grad is not None

    trained = LMVNet(registration="none").train()  # the control: these buffers do move
    moving = trained.longitudinal_feat_processor.encoder[0].bn1.running_mean
    trained(small_batch())
    assert moving.abs().max() > 0


def test_training_reaches_every_trainable_parameter_and_repeats_bit_by_bit(model):
    trained = copy.deepcopy(model).train()
    gradients = []
    for _ in range(2):
        torch.manual_seed(1)
        trained.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = trained(small_batch())
        assert outputs["risk_multi"].dtype == torch.float32
        (outputs["risk_multi"] + outputs["risk_cc"] + outputs["risk_mlo"]).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in trained.named_parameters() if p.grad is not None})
    trainable = {name for name, p in trained.named_parameters() if p.requires_grad}
    assert gradients[0].keys() == trainable
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in trainable)


def test_heads_and_score_need_no_instance():
    outputs = {f"risk_{name}": torch.full((2, 5), float(i)) for i, name in enumerate(LMVNet.head_weights)}
    batch = {"target": torch.ones(2, 5), "y_mask": torch.zeros(2, 5)}
    heads = LMVNet.risk_heads(outputs, batch)
    assert list(heads) == list(LMVNet.head_weights) == ["multi", "cc", "mlo"]
    assert heads["cc"] == (outputs["risk_cc"], batch["target"], batch["y_mask"])
    assert_close(LMVNet.primary_risk(outputs), torch.full((2, 5), 0.5))


def test_bad_input_is_named():
    with torch.device("meta"):
        model = LMVNet(registration="none")
    good = small_batch()
    with pytest.raises(DataError, match="no previous_image_mlo"):
        model({key: value for key, value in good.items() if key != "previous_image_mlo"})
    with pytest.raises(DataError, match=r"previous_image_cc \(2, 1, 32, 32\)"):
        model(good | {"previous_image_cc": torch.zeros(2, 1, 32, 32)})
    with pytest.raises(DataError, match=r"80 x 32 pixels.* 96 x 32"):
        model({key: torch.zeros(2, 1, 80, 32) for key in good})
    with pytest.raises(ConfigError, match="feature_dim is 512"):
        LMVNet(feature_dim=512)
