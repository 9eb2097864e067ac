"""VMRA-MaR: checkpoint compatibility, its whole against a plain transcription, mirrors, missing images, training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from medtrain import build_model
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.mammography.model.losses import MultiHeadBCE
from medtrain_plugins.vmra_mar.model import VMRAMaR
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.models import resnet18

OUTPUTS = {
    "logit": (2, 5),
    "probs": (2, 5),
    "temporal_feature": (2, 512),
    "temporal_output": (2, 2, 512),
    "latent_tokens": (2, 2, 512),
    "r_aa": (2, 1),
    "asymmetry_scores": (2, 2),
    "asymmetry_coords": (2, 2, 2),
    "coord_valid": (2, 2),
}


def run(model: VMRAMaR, images: torch.Tensor, **masks: torch.Tensor) -> dict[str, Any]:
    with torch.no_grad():
        return model(masks | {"images": images})


def assert_same(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float = 1e-5) -> None:
    for name in OUTPUTS:
        assert_close(
            ours[name], theirs[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_keys_and_shapes_are_those_of_checkpoints(model, cases):
    case = cases("formula_vmra_mar")
    listed = {key: tuple(shape) for key, shape, _ in case.inputs["state_dict_keys"]}
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == listed
    assert len(listed) == case.inputs["n_state_dict_keys"] == 189


def test_parameter_counts(model):
    assert sum(p.numel() for p in model.parameters()) == 21_492_302
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # 10,315,790 without the encoder, of which one half of the network and one layer are never reached.
    assert trained == 10_315_790 - 2 * 2_577_920 - 524_800 == 4_635_150
    with torch.device("meta"):
        whole, alone = VMRAMaR(freeze_image_encoder=False), VMRAMaR(asymmetry=False)
    assert sum(p.numel() for p in whole.parameters() if p.requires_grad) == trained + 11_176_512
    assert not any(key.startswith("sad.") for key in alone.state_dict())
    assert alone.ahl.hazard_fc.in_features == 512


# The published description once more, on the tensors of the state dict, with loops where it has sums over time.


def encoder(w: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Torchvision's ResNet-18 with the same weights."""
    names = {}
    for key, tensor in w.items():
        if key.startswith("image_encoder."):
            block, rest = key.removeprefix("image_encoder.").split(".", 1)
            stage = (int(block) - 1) // 2 + 1
            names[rest if block == "0" else f"layer{stage}.{(int(block) - 1) % 2}.{rest}"] = tensor
    network = resnet18()
    network.load_state_dict(names, strict=False)
    network = network.double().eval()
    assert set(names) == {key for key in network.state_dict() if not key.startswith("fc.")}
    x = network.maxpool(network.relu(network.bn1(network.conv1(images.expand(-1, 3, -1, -1)))))
    return network.layer4(network.layer3(network.layer2(network.layer1(x))))


def block(w: dict[str, torch.Tensor], name: str, x: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
    """x (T, 512) of one woman."""

    def norm(tensor: torch.Tensor, layer: str) -> torch.Tensor:
        return F.layer_norm(tensor, tensor.shape[-1:], w[f"{name}{layer}.weight"], w[f"{name}{layer}.bias"])

    own = f"{name}self_attention."
    u = norm(x, "ln_1")
    if hidden is not None:
        u = torch.cat([u, norm(hidden, "ln_1")], dim=1) @ w[f"{name}linear.weight"].T + w[f"{name}linear.bias"]
    inner, z = (u @ w[f"{own}in_proj.weight"].T).chunk(2, dim=1)
    kernel, visits = w[f"{own}conv2d.weight"], len(x)
    mixed = []
    for t in range(visits):  # of the 3 x 3 kernel only the middle row lies on the map
        total = w[f"{own}conv2d.bias"].clone()
        for tap in (-1, 0, 1):
            if 0 <= t + tap < visits:
                total += kernel[:, 0, 1, tap + 1] * inner[t + tap]
        mixed.append(total * torch.sigmoid(total))
    y = torch.zeros(visits, 1024, dtype=torch.float64)
    for k in range(4):
        state = torch.zeros(1024, 16, dtype=torch.float64)
        A = -torch.exp(w[f"{own}A_logs"][k * 1024 : (k + 1) * 1024])
        for t in range(visits) if k < 2 else reversed(range(visits)):
            projected = w[f"{own}x_proj_weight"][k] @ mixed[t]
            step = w[f"{own}dt_projs_weight"][k] @ projected[:32] + w[f"{own}dt_projs_bias"][k]
            step = torch.log1p(torch.exp(step)).unsqueeze(1)
            state = torch.exp(step * A) * state + step * projected[32:48] * mixed[t].unsqueeze(1)
            y[t] += state @ projected[48:] + w[f"{own}Ds"][k * 1024 : (k + 1) * 1024] * mixed[t]
    y = norm(y, "self_attention.out_norm") * z * torch.sigmoid(z)
    return x + y @ w[f"{own}out_proj.weight"].T


def cell(w: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z = block(w, f"{name}.VSBs.0.", x, torch.zeros_like(x))
    z = block(w, f"{name}.VSBs.1.", z, None)
    state = torch.sigmoid(z) * torch.tanh(z)
    return torch.sigmoid(z) * torch.tanh(state), state


def transcription(w: dict[str, torch.Tensor], images: torch.Tensor) -> dict[str, Any]:
    count, visits = images.shape[:2]
    maps = encoder(w, images.flatten(0, 2)).unflatten(0, (count, visits, 4))
    rows: dict[str, list[Any]] = {name: [] for name in (*OUTPUTS, "H", "C", "H_up", "C_up")}
    for b in range(count):
        tokens = torch.stack(
            [sum(maps[b, t, v].flatten(1).max(dim=1).values for v in range(4)) / 4 for t in range(visits)]
        )
        latent, state = cell(w, "vmrnn.Downsample.layers.0", tokens)
        decoded, state_up = cell(w, "vmrnn.Upsample.layers.0", latent)
        scores, places = [], []
        for t in range(visits):
            pairs = []
            for i, j, stretch in ((0, 1, "cc"), (2, 3, "mlo")):
                s = w[f"sad.{stretch}_stretch_params"].view(-1, 1, 1)
                difference = (s * maps[b, t, i] - s * maps[b, t, j].flip(-1)).abs()
                h, width = max(difference.shape[1] // 5, 1), max(difference.shape[2] // 5, 1)
                heat = F.max_pool2d(difference, (h, width)).square().sum(0).sqrt()
                best = heat.max()
                pairs.append((best, (heat == best).nonzero()[0].tolist()))
            mean, std = w["sad.learned_asym_mean"], w["sad.learned_asym_std"]
            scores.append(sum(torch.sigmoid((raw - mean) / std.abs()) for raw, _ in pairs) / 2)
            places.append(max(pairs, key=lambda pair: pair[0])[1])
        distance = sum((p - q) ** 2 for p, q in zip(*places, strict=True)) ** 0.5
        weight = 2.0 if distance <= 0.4 * max(maps.shape[-2:]) else 1.0
        asymmetry = sum(weight * score for score in scores) / max(2 * weight, 1)
        feature = torch.cat([latent.mean(0), asymmetry.view(1)])
        hazards = torch.relu(w["ahl.hazard_fc.weight"] @ feature + w["ahl.hazard_fc.bias"])
        logit = w["ahl.base_hazard_fc.weight"] @ feature + w["ahl.base_hazard_fc.bias"]
        logit = torch.stack([logit[0] + sum(hazards[: year + 1]) for year in range(5)])
        found = {
            "logit": logit,
            "probs": 1 / (1 + torch.exp(-logit)),
            "temporal_feature": latent.mean(0),
            "temporal_output": 1 / (1 + torch.exp(-decoded)),
            "latent_tokens": latent,
            "r_aa": asymmetry.view(1),
            "asymmetry_scores": torch.stack(scores),
            "asymmetry_coords": torch.tensor(places, dtype=torch.float64),
            "coord_valid": torch.ones(visits, dtype=torch.bool),
            "H": latent,
            "C": state,
            "H_up": decoded,
            "C_up": state_up,
        }
        for name, value in found.items():
            rows[name].append(value)
    stacked = {name: torch.stack(values) for name, values in rows.items()}
    return stacked | {
        "states_down": [(stacked.pop("H"), stacked.pop("C"))],
        "states_up": [(stacked.pop("H_up"), stacked.pop("C_up"))],
    }


@pytest.fixture(scope="module")
def formula_images(formula_image) -> torch.Tensor:
    images = [formula_image(s, 2, 128, 96) for s in range(8)]
    return torch.stack(images, dim=1).unflatten(1, (2, 4))


def test_the_whole_equals_a_plain_transcription(model, formula_images):
    weights = {key: tensor.double() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = transcription(weights, formula_images)
    found = run(model, formula_images.float())
    assert found.keys() == expected.keys()
    assert {name: tuple(found[name].shape) for name in OUTPUTS} == OUTPUTS
    for name in OUTPUTS:
        wanted = expected[name].float() if expected[name].is_floating_point() else expected[name]
        assert_close(found[name], wanted, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    for name in ("states_down", "states_up"):
        for ours, theirs in zip(found[name][0], expected[name][0], strict=True):
            assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)
    precise = run(copy.deepcopy(model).double(), formula_images)
    for name in OUTPUTS:
        assert_close(precise[name], expected[name], rtol=1e-9, atol=1e-9)
    assert torch.equal(VMRAMaR.primary_risk(found), found["probs"])


def test_fixed_changes_the_asymmetry_only(model, with_options, formula_images):
    published = run(model, formula_images.float())
    fixed = run(with_options(model), formula_images.float())
    for name in ("temporal_feature", "temporal_output", "latent_tokens"):
        assert torch.allclose(fixed[name], published[name], rtol=1e-5, atol=1e-6), name
    assert not torch.allclose(fixed["asymmetry_scores"], published["asymmetry_scores"], rtol=1e-4, atol=0)


def scaled(model: VMRAMaR, with_options, **options: Any) -> VMRAMaR:
    """The network with a scale that its scores lie on."""
    other = with_options(model, **options)
    with torch.no_grad():
        other.sad.learned_asym_mean.fill_(5.0)
        other.sad.learned_asym_std.fill_(2.0)
    return other


@pytest.mark.parametrize("orientation", ["as_is", "mirai"])
def test_a_mirror_image_has_no_asymmetry_and_a_mirrored_woman_the_same(model, with_options, images, orientation):
    fixed = scaled(model, with_options, orientation=orientation)
    left = images(2, 2)[:, :, :2]
    mirror = (lambda x: x.flip(-1)) if orientation == "as_is" else (lambda x: x)
    zero = torch.sigmoid(torch.tensor(-5.0 / 2.0)).expand(2, 2)
    symmetric = run(fixed, torch.cat([left, mirror(left)], dim=2))
    assert torch.equal(symmetric["asymmetry_scores"], zero)

    both = images(2, 2)
    assert not torch.allclose(run(fixed, both)["asymmetry_scores"], zero, atol=1e-2)
    swapped = torch.cat([mirror(both[:, :, 2:]), mirror(both[:, :, :2])], dim=2)
    for name in ("asymmetry_scores", "r_aa"):
        assert_close(run(fixed, swapped)[name], run(fixed, both)[name], rtol=1e-5, atol=1e-5)
    published = scaled(model, with_options, compat="reference")
    assert not torch.allclose(
        run(published, torch.cat([left, mirror(left)], dim=2))["asymmetry_scores"], zero, atol=1e-2
    )


@pytest.mark.parametrize("compat", ["fixed", "reference"])
def test_missing_visits_change_nothing(model, with_options, images, compat):
    network = scaled(model, with_options, compat=compat)
    pair = images(2, 2)
    alone = run(network, pair)
    for filling in (torch.zeros(2, 2, 4, 1, 64, 64), torch.full((2, 2, 4, 1, 64, 64), torch.nan)):
        padded = torch.cat([filling, pair], dim=1)
        exam_mask = torch.tensor([[False, False, True, True]] * 2)
        by_exam = run(network, padded, exam_mask=exam_mask)
        by_view = run(network, padded, view_mask=exam_mask.unsqueeze(-1).expand(-1, -1, 4))
        for found in (by_exam, by_view):
            for name in ("logit", "probs", "temporal_feature", "r_aa"):
                assert_close(found[name], alone[name], rtol=1e-5, atol=1e-6)
            for name in ("latent_tokens", "temporal_output", "asymmetry_scores", "asymmetry_coords", "coord_valid"):
                assert_close(found[name][:, 2:], alone[name], rtol=1e-5, atol=1e-6)
                assert not found[name][:, :2].any(), name
    assert not torch.allclose(run(network, torch.nan_to_num(padded))["logit"], alone["logit"], rtol=1e-3)


def test_women_with_different_numbers_of_visits_share_a_batch(model, with_options, images):
    network = scaled(model, with_options)
    four = images(2, 4)
    exam_mask = torch.tensor([[False, False, True, True], [True] * 4])
    together = run(network, four, exam_mask=exam_mask)
    for row, visits in ((0, 2), (1, 4)):
        alone = run(network, four[row : row + 1, -visits:])
        for name in ("logit", "temporal_feature", "r_aa"):
            assert_close(together[name][row : row + 1], alone[name], rtol=1e-5, atol=1e-6)


def test_missing_views_are_left_out(model, with_options, images):
    network = scaled(model, with_options)
    pair = images(2, 2)
    view_mask = torch.ones(2, 2, 4, dtype=torch.bool)
    view_mask[:, 0, 1] = False  # L_MLO of the first visit
    found = run(network, pair.masked_fill(~view_mask[..., None, None, None], 0.5), view_mask=view_mask)
    assert_same(found, run(network, pair, view_mask=view_mask))
    only_cc = run(network, pair, view_mask=torch.tensor([True, False, True, False]).expand(2, 2, 4))
    assert_close(found["asymmetry_scores"][:, 0], only_cc["asymmetry_scores"][:, 0])
    assert not torch.allclose(found["logit"], run(network, pair)["logit"], rtol=1e-4, atol=1e-6)

    # The mean over views is that over those there are: a view twice in place of the missing one is another mean.
    with torch.no_grad():
        maps, _ = network.encode(pair, torch.ones_like(view_mask))
        tokens = maps[:, :, [0, 2, 3]].amax(dim=(4, 5)).mean(dim=2)
        expected = network.vmrnn.Downsample(torch.stack([tokens[:, 0], maps[:, 1].amax(dim=(3, 4)).mean(dim=1)], 1))[0]
    assert_close(found["latent_tokens"], expected, rtol=1e-5, atol=1e-6)

    one_side = run(network, pair, view_mask=torch.tensor([True, True, False, False]).expand(2, 2, 4))
    assert not one_side["coord_valid"].any()
    assert (one_side["r_aa"] == 0).all() and one_side["logit"].isfinite().all()


@pytest.mark.parametrize("size", [(96, 64), (32, 32), (64, 192)])
def test_small_maps(model, with_options, images, size):
    for options in ({}, {"compat": "reference"}, {"latent_size": (1, 7)}):
        found = run(with_options(model, **options), images(1, 3, *size))
        assert found["logit"].isfinite().all()
        assert (found["logit"].diff(dim=1) >= 0).all()
        assert (found["asymmetry_coords"] < torch.tensor([size[0] // 32, size[1] // 32])).all()


def targets(count: int) -> dict[str, torch.Tensor]:
    return {
        "target": torch.arange(count).unsqueeze(1).remainder(2).expand(-1, 5).float(),
        "y_mask": torch.ones(count, 5),
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"freeze_image_encoder": False}, {"asymmetry": False}, {"embed_dim": 32, "depth": 3}, {"compat": "reference"}],
)
def test_every_trainable_parameter_gets_a_gradient_and_frozen_parts_rest(images, options):
    torch.manual_seed(0)
    model = VMRAMaR(**options).train()
    batch = {"images": images(4, 2)} | targets(4)
    before = copy.deepcopy(model.state_dict())
    loss = MultiHeadBCE(VMRAMaR.risk_heads, VMRAMaR.head_weights)
    total, weight = loss(model(batch), batch)["logit_output"]
    (total / weight).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("vmrnn.Upsample") or (".linear." in name and "VSBs.0" not in name)
        frozen |= name.startswith("image_encoder.") and options.get("freeze_image_encoder", True)
        assert parameter.requires_grad == (not frozen), name
        assert (parameter.grad is None) == frozen, name
        if not frozen:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    statistics = {key for key in before if "running" in key or "num_batches" in key}
    scale = (
        set() if "asymmetry" in options or "compat" in options else {"sad.learned_asym_mean", "sad.learned_asym_std"}
    )
    assert moved == scale | (statistics if options.get("freeze_image_encoder") is False else set())
    assert not model.vmrnn.Upsample.training and model.vmrnn.Downsample.training


def test_missing_images_are_in_no_batch_statistics(images):
    torch.manual_seed(0)
    first = VMRAMaR(freeze_image_encoder=False).train()
    second = copy.deepcopy(first)
    padded = torch.cat([torch.full((2, 1, 4, 1, 64, 64), 9.0), images(2, 2)], dim=1)
    first({"images": images(2, 2)})
    second({"images": padded, "exam_mask": torch.tensor([[False, True, True]] * 2)})
    for (key, ours), theirs in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert_close(ours, theirs, msg=lambda text, key=key: f"{key}: {text}")


def test_the_first_batch_brings_the_asymmetry_to_life_and_checkpoints_keep_it(images, tmp_path):
    torch.manual_seed(0)
    model = VMRAMaR().train()
    batch = {"images": images(4, 2)} | targets(4)
    assert run(model.eval(), batch["images"])["asymmetry_scores"].max() < 0.01
    outputs = model.train()(batch)
    assert outputs["asymmetry_scores"].min() > 0.1 and outputs["asymmetry_scores"].max() < 0.9
    assert outputs["asymmetry_scores"].std() > 0.01
    outputs["r_aa"].sum().backward()
    assert model.sad.learned_asym_mean.grad.abs() > 1e-3  # 5e-6 where the scale was the published one
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    resumed = VMRAMaR()
    resumed.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    scale = resumed.sad.learned_asym_mean.item()
    assert scale == model.sad.learned_asym_mean.item() != 2000
    resumed.train()({"images": 1 - batch["images"]})
    assert resumed.sad.learned_asym_mean.item() == scale


def test_training_repeats_bit_by_bit_and_autocast_keeps_the_risk_precise(images):
    torch.manual_seed(0)
    start = VMRAMaR(freeze_image_encoder=False)
    gradients = []
    for _ in range(2):
        model = copy.deepcopy(start).train()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model({"images": images(2, 2)})
        assert outputs["logit"].dtype == outputs["r_aa"].dtype == torch.float32
        outputs["logit"].sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    with torch.autocast("cpu", torch.bfloat16):
        short = run(start.eval(), images(2, 2))
    assert_close(short["probs"], run(start, images(2, 2))["probs"], rtol=0.02, atol=0.02)


def test_mirai_normalisation_reaches_the_encoder(model, with_options, images):
    other = with_options(model, input_norm="mirai", compat="reference")
    seen: dict[str, torch.Tensor] = {}
    other.image_encoder.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    run(other, images(1, 2))
    expected = (images(1, 2).flatten(0, 2) * 65535 - 7047.99) / 12005.5
    assert_close(seen["x"], expected.expand(-1, 3, -1, -1))


def test_bad_input_is_named(images):
    with torch.device("meta"):
        model = VMRAMaR()
    good = images(2, 2)
    with pytest.raises(DataError, match="no images"):
        model({})
    with pytest.raises(DataError, match=r"VMRA-MaR needs images of one shape \(B, N, 4, 1, H, W\)"):
        model({"images": good[:, :, :3]})
    with pytest.raises(DataError, match="multiples of 32"):
        model({"images": good[..., :50]})
    with pytest.raises(DataError, match=r"exam_mask has the shape \(2, 3\).* \(2, 2\)"):
        model({"images": good, "exam_mask": torch.ones(2, 3)})
    with pytest.raises(DataError, match=r"view_mask has the shape \(2, 4\)"):
        model({"images": good, "view_mask": torch.ones(2, 4)})
    with pytest.raises(DataError, match="sample b has no image"):
        model({"images": good, "exam_mask": torch.tensor([[1, 1], [0, 0]]), "sample_id": ["a", "b"]})


def test_the_plugin_builds_it_from_options():
    model = build_model(
        "vmra_mar", compat="reference", freeze_image_encoder=False, persistent_weight=2.5, orientation="mirai"
    )
    assert isinstance(model, VMRAMaR)
    assert (model.compat, model.sad.compat, model.persistent_weight) == ("reference", "reference", 2.5)
    assert model.orientation == "mirai" and model.image_encoder[0].conv1.weight.requires_grad
    small = build_model("vmra_mar", asymmetry=False, embed_dim=64, depth=1)
    assert small.ahl.hazard_fc.in_features == 64 and len(small.vmrnn.Downsample.layers[0].VSBs) == 1
    scale = build_model("vmra_mar", asymmetry_mean=20, asymmetry_std=4, latent_size=[3, 2], threshold_ratio=0.5)
    assert (scale.sad.learned_asym_mean.item(), scale.sad.learned_asym_std.item()) == (20, 4)
    assert scale.threshold(64, 52) == 1.5
    with pytest.raises(ConfigError, match="max_visits"):
        build_model("vmra_mar", max_visits=1)
