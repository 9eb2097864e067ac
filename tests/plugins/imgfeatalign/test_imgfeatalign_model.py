"""ImgFeatAlign: checkpoint compatibility, golden values, its whole against a plain transcription, what is frozen."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain.errors import DataError
from medtrain_plugins.imgfeatalign.model import ImgFeatAlign, RiskModel
from medtrain_plugins.mammography.model.losses import MultiHeadBCE
from torch.nn import functional as F
from torch.testing import assert_close

GOLDEN = Path(__file__).parents[2] / "golden" / "imgfeatalign.json"
LABELS = ("target", "y_mask", "target_prior", "y_mask_prior")


@pytest.fixture(scope="module")
def own_golden(golden) -> Any:
    """As `golden`, from the cases of this model."""
    cases = json.loads(GOLDEN.read_text())
    case_type = type(golden("resize_flow"))
    return lambda name: case_type(cases[name])


@pytest.fixture(scope="module")
def model(formula_weights) -> ImgFeatAlign:
    return formula_weights(ImgFeatAlign())


@pytest.fixture(scope="module")
def batch(formula_image) -> dict[str, Any]:
    images = {key: formula_image(s, 2, 128, 96).float() for s, key in enumerate(("current_image", "previous_image"))}
    return images | {"time_gap": torch.tensor([1, 3])} | {key: torch.ones(2, 5) for key in LABELS}


def with_options(model: ImgFeatAlign, **options: Any) -> ImgFeatAlign:
    """The same weights under other options."""
    with torch.device("meta"):
        other = ImgFeatAlign(**options)
    keys = other.state_dict().keys()
    other.load_state_dict({k: v for k, v in model.state_dict().items() if k in keys}, assign=True)
    return other.eval()


def predict(model: ImgFeatAlign, batch: dict[str, Any]) -> dict[str, Any]:
    with torch.no_grad():
        return model(batch)


def small_batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    images = {key: torch.rand(2, 1, 64, 32, generator=generator) for key in ("current_image", "previous_image")}
    return images | {"time_gap": torch.tensor([1.0, 2.0])} | {key: torch.ones(2, 5) for key in LABELS}


def test_keys_and_shapes_are_those_of_checkpoints(model, own_golden, golden):
    case = own_golden("formula_imgfeatalign")
    listed = {key: tuple(shape) for key, shape, _ in case.inputs["state_dict_keys"] if key[0] != "<"}
    for key, shape, _ in golden("formula_mammoregnet").inputs["state_dict_keys"]:
        listed[f"mammo_reg_net.{key}"] = tuple(shape)
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == listed
    assert len(listed) == case.inputs["n_state_dict_keys"] == 432


def test_parameter_counts(model):
    assert sum(p.numel() for p in model.parameters()) == 19_436_922
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 3_424_274
    with torch.device("meta"):
        tuned, alone = ImgFeatAlign(finetune_encoder=True), ImgFeatAlign(registration="none")
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == 3_424_274 + 11_176_512
    assert sum(p.numel() for p in alone.parameters()) == 19_436_922 - 4_836_136


def test_risk_head(own_golden):
    case = own_golden("imgfeatalign_risk_head")
    head = RiskModel(8, num_heads=2, dropout=0.1, ffn_ratio=2)
    case.inputs["state_dict"]["positional_encoding.pe"] = head.positional_encoding.pe.tolist()  # a table, not learned
    case.load_into(head)
    names = ("f_cur", "f_pri", "f_pri_aligned", "f_dif", "time_gap")
    out = head(*(case.tensor(name) for name in names))
    for name, found in out.items():
        assert_close(found, case.tensor(name), rtol=1e-5, atol=1e-5)
    assert set(out) == {"pred_fused", "pred_cur", "pred_pri"}
    swapped = head(*(case.tensor(name) for name in ("f_pri_aligned", *names[1:])))
    assert not torch.allclose(swapped["pred_fused"], out["pred_fused"], atol=1e-4)


def test_loss_is_that_of_the_published_code(own_golden):
    case = own_golden("multi_head_loss_imgfeatalign")
    outputs = {"risk_prediction": {f"pred_{name}": case.tensor(name) for name in ImgFeatAlign.head_weights}}
    named = zip(LABELS, ("target", "mask", "target_prior", "mask_prior"), strict=True)
    batch = {key: case.tensor(name) for key, name in named}
    loss = MultiHeadBCE(ImgFeatAlign.risk_heads, ImgFeatAlign.head_weights, {"pri": "y_mask_prior"})
    terms = loss(outputs, batch)
    assert_close(sum(total / count for total, count in terms.values()), case.tensor("loss"))
    assert {name: float(weight) for name, weight in loss.weights(batch).items()} == {
        name: float(count) for name, (_, count) in terms.items()
    }
    mistaken = batch | {"y_mask_prior": batch["y_mask"]}
    assert not torch.isclose(sum(s / n for s, n in loss(outputs, mistaken).values()), case.tensor("loss"))


def plain_forward(state: dict[str, torch.Tensor], current, prior, years, flow, compat: str) -> dict[str, Any]:
    """The published description in functional form: nothing of this package but the weights and the flow."""

    def norm(x, name):
        statistics = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return F.batch_norm(x, *statistics, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    def encode(image):
        x = image.repeat(1, 3, 1, 1)
        x = F.relu(norm(F.conv2d(x, state["encoder.0.conv1.weight"], stride=2, padding=3), "encoder.0.bn1"))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for block, stride in zip(range(1, 9), (1, 1, 2, 1, 2, 1, 2, 1), strict=True):
            name = f"encoder.{block}"
            y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(F.relu(norm(y, f"{name}.bn1")), state[f"{name}.conv2.weight"], padding=1)
            if f"{name}.downsample.0.weight" in state:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{name}.downsample.1")
            x = F.relu(norm(y, f"{name}.bn2") + x)
        return x

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def layer_norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def hazards(x, name):
        yearly = F.relu(linear(x, f"{name}.hazard_fc"))
        return linear(x, f"{name}.base_hazard_fc") + yearly.cumsum(dim=1)

    f_cur, f_pri = encode(current), encode(prior)
    (h, w), (height, width) = f_cur.shape[2:], flow.shape[2:]
    flow = F.interpolate(flow, (h, w), mode="bilinear", align_corners=True)
    dx, dy = (flow[:, 0], flow[:, 1]) if compat == "reference" else (flow[:, 1], flow[:, 0])
    x = torch.linspace(-1, 1, w).view(1, 1, w) + dx * (w / width) * 2 / (w - 1)
    y = torch.linspace(-1, 1, h).view(1, h, 1) + dy * (h / height) * 2 / (h - 1)
    f_al = F.grid_sample(f_pri, torch.stack([x, y], dim=-1), align_corners=True)
    f_dif = (f_cur - f_al).abs()

    step = years.float() * 239 / 5
    low, share = step.floor().long(), (step - step.floor())[:, None]
    table = state["risk_model.positional_encoding.pe"]
    time = table[low] * (1 - share) + table[step.ceil().long()] * share
    pooled = [f.flatten(2).mean(dim=2) for f in (f_al, f_dif + time[:, :, None, None], f_cur, f_pri)]

    name = "risk_model.attention_layer"
    tokens = torch.stack(pooled[:3], dim=1)  # (B, 3, 512)
    weights, biases = state[f"{name}.attn.in_proj_weight"], state[f"{name}.attn.in_proj_bias"]
    q, k, v = (part.unflatten(2, (8, 64)).transpose(1, 2) for part in F.linear(tokens, weights, biases).chunk(3, dim=2))
    attended = ((q @ k.transpose(2, 3)) / 8).softmax(dim=3) @ v
    attended = linear(attended.transpose(1, 2).flatten(2), f"{name}.attn.out_proj")
    tokens = layer_norm(tokens + attended, f"{name}.norm1")
    tokens = layer_norm(tokens + linear(F.relu(linear(tokens, f"{name}.ff.0")), f"{name}.ff.2"), f"{name}.norm2")
    fused = linear(tokens.mean(dim=1), "risk_model.feature_projection")
    return {
        "pred_fused": hazards(fused, "risk_model.head_fused"),
        "pred_cur": hazards(pooled[2], "risk_model.head_cur"),
        "pred_pri": hazards(pooled[3], "risk_model.head_pri"),
        "aligned_prior_feature": f_al,
        "prior_feature": f_pri,
        "current_feature": f_cur,
        "diff_feature": f_dif,
    }


@pytest.mark.parametrize("compat", ["reference", "fixed"])
def test_forward_is_the_published_description(model, batch, compat):
    other = with_options(model, compat=compat)
    out = predict(other, batch)
    with torch.no_grad():
        flow = model.mammo_reg_net(batch["current_image"], batch["previous_image"])[1]
        images = batch["current_image"], batch["previous_image"]
        expected = plain_forward(model.state_dict(), *images, batch["time_gap"], flow, compat)
    assert flow.abs().max() > 1  # the formula weights do move something
    assert_close(out["deformation_field"], flow)
    found = {**out, **out["risk_prediction"]}
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert_close(other.primary_risk(out), expected["pred_fused"].sigmoid(), rtol=1e-4, atol=1e-5)


def test_outputs_and_what_options_change(model, batch):
    out = predict(model, batch)
    assert {name: tuple(value.shape) for name, value in out.items() if name != "risk_prediction"} == {
        "deformation_field": (2, 2, 128, 96),
        **dict.fromkeys(("aligned_prior_feature", "prior_feature", "current_feature", "diff_feature"), (2, 512, 4, 3)),
    }
    for logits in out["risk_prediction"].values():
        assert logits.shape == (2, 5)
        assert (logits.diff(dim=1) >= 0).all()
    for options in ({"compat": "reference"}, {"registration": "none"}, {"input_norm": "mirai"}):
        other = predict(with_options(model, **options), batch)["risk_prediction"]["pred_fused"]
        assert not torch.allclose(other, out["risk_prediction"]["pred_fused"], rtol=1e-4, atol=1e-5), options


class FoundFurtherDown(torch.nn.Module):
    """A registration that finds everything 32 rows further down in the prior image."""

    def forward(self, fixed: torch.Tensor, moving: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flow = torch.zeros(len(fixed), 2, *fixed.shape[-2:])
        flow[:, 0] = 32  # channel 0: rows
        return moving, flow, moving, flow


def test_features_move_where_the_flow_says_unless_the_published_error_is_asked_for():
    impulse = torch.zeros(1, 512, 8, 8)
    impulse[0, :, 4, 4] = 1
    image = torch.zeros(1, 1, 256, 256)  # 32 of its pixels are one of the map
    peaks = {}
    for compat in ("fixed", "reference"):
        with torch.device("meta"):
            model = ImgFeatAlign(compat=compat)
        model.mammo_reg_net = FoundFurtherDown()
        moved = model.align(impulse, model.deformation_field(image, image))
        assert moved.max() == 1
        peaks[compat] = [int(i) for i in moved[0, 0].nonzero()[0]]
    assert peaks == {"fixed": [3, 4], "reference": [4, 3]}


def test_without_registration_the_prior_stays_in_place(model, batch):
    out = predict(with_options(model, registration="none"), batch)
    assert out["deformation_field"].shape == (2, 2, 128, 96)
    assert not out["deformation_field"].any()
    assert out["deformation_field"].untyped_storage().nbytes() == 4  # no memory for nothing
    assert torch.equal(out["aligned_prior_feature"], out["prior_feature"])
    same = predict(with_options(model, registration="none"), batch | {"previous_image": batch["current_image"]})
    assert not same["diff_feature"].any()


def test_mirai_normalisation_reaches_the_encoder_only(model, batch):
    other = with_options(model, input_norm="mirai")
    seen: dict[str, torch.Tensor] = {}
    other.encoder.register_forward_pre_hook(lambda module, inputs: seen.update(encoder=inputs[0]))
    other.mammo_reg_net.register_forward_pre_hook(lambda module, inputs: seen.update(registration=inputs[0]))
    predict(other, batch)
    assert torch.equal(seen["registration"], batch["current_image"])
    expected = (torch.cat([batch["current_image"], batch["previous_image"]]) * 65535 - 7047.99) / 12005.5
    assert_close(seen["encoder"], expected.expand(-1, 3, -1, -1))


def test_frozen_parts_stay_frozen_in_training():
    torch.manual_seed(0)
    model = ImgFeatAlign().train()
    assert model.training and not model.encoder.training and not model.mammo_reg_net.training
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    out = model(small_batch())
    sum(logits.sum() for logits in out["risk_prediction"].values()).backward()
    for part in ("encoder", "mammo_reg_net"):
        for key, tensor in model.get_submodule(part).state_dict(prefix=f"{part}.").items():
            assert torch.equal(tensor, before[key]), key
        assert all(p.grad is None for p in model.get_submodule(part).parameters())
    for name in ("current_feature", "prior_feature", "aligned_prior_feature", "deformation_field"):
        assert not out[name].requires_grad, name

    trained = ImgFeatAlign(finetune_encoder=True, registration="none").train()  # the control: these buffers do move
    trained(small_batch())
    assert trained.encoder[0].bn1.running_mean.abs().max() > 0


@pytest.mark.parametrize("finetune_encoder", [False, True])
def test_training_reaches_every_trainable_parameter_and_repeats_bit_by_bit(model, finetune_encoder):
    trained = copy.deepcopy(with_options(model, finetune_encoder=finetune_encoder)).train()
    loss = MultiHeadBCE(ImgFeatAlign.risk_heads, ImgFeatAlign.head_weights, {"pri": "y_mask_prior"})
    gradients = []
    for _ in range(2):
        torch.manual_seed(1)
        trained.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = trained(small_batch())
        assert outputs["risk_prediction"]["pred_fused"].dtype == torch.float32
        sum(total / count for total, count in loss(outputs, small_batch()).values()).backward()
        gradients.append({n: p.grad.clone() for n, p in trained.named_parameters() if p.grad is not None})
    trainable = {name for name, p in trained.named_parameters() if p.requires_grad}
    assert gradients[0].keys() == trainable
    assert all(gradient.any() for name, gradient in gradients[0].items() if "hazard_fc" not in name)
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in trainable)


def test_bad_input_is_named():
    with torch.device("meta"):
        model = ImgFeatAlign(registration="none")
    good = small_batch()
    with pytest.raises(DataError, match="no previous_image"):
        model({key: value for key, value in good.items() if key != "previous_image"})
    with pytest.raises(DataError, match=r"previous_image \(2, 1, 32, 32\)"):
        model(good | {"previous_image": torch.zeros(2, 1, 32, 32)})
    with pytest.raises(DataError, match=r"80 x 32 pixels.* 96 x 32"):
        model({key: torch.zeros(2, 1, 80, 32) for key in good})
