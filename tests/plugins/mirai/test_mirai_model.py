"""Mirai: checkpoint compatibility, golden values, exams with missing images, what is trained."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain import build_model
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.mammography.model.losses import MultiHeadBCE
from medtrain_plugins.mirai.losses import RiskAndFactorsLoss, known_factor_entropy
from medtrain_plugins.mirai.model import AllImageTransformer, GlobalAvgPool, GlobalMaxPool, MiraiModel
from medtrain_plugins.mirai.risk_factors import OFFSETS, RISK_FACTORS
from torch.testing import assert_close

GOLDEN = Path(__file__).parents[2] / "golden" / "mirai.json"
NEVER_TRAINED = {
    "transformer.kept_images_vec",
    "transformer.mask_embedding.weight",
    *(f"transformer.{layer}.{part}" for layer in ("fc", "pred_masked_img_fc") for part in ("weight", "bias")),
}


@pytest.fixture(scope="module")
def own_golden(golden) -> Any:
    """As `golden`, from the cases of this model."""
    cases = json.loads(GOLDEN.read_text())
    case_type = type(golden("resize_flow"))
    return lambda name: case_type(cases[name])


@pytest.fixture(scope="module")
def model(formula_weights) -> MiraiModel:
    return by_formula(formula_weights, MiraiModel())


def by_formula(formula_weights, model: MiraiModel) -> MiraiModel:
    """Formula weights, but what the rule leaves as built: the images kept, and the rows of empty slots."""
    formula_weights(model)
    with torch.no_grad():
        model.transformer.kept_images_vec.fill_(1)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight[module.padding_idx] = 0
    return model


def with_options(model: MiraiModel, **options: Any) -> MiraiModel:
    """The same weights under other options."""
    with torch.device("meta"):
        other = MiraiModel(**options)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.eval()


def places(batch_size: int) -> dict[str, torch.Tensor]:
    return {
        "time_seq": torch.zeros(batch_size, 4, dtype=torch.int64),
        "view_seq": torch.tensor([[0, 1, 0, 1]] * batch_size),
        "side_seq": torch.tensor([[1, 1, 0, 0]] * batch_size),
    }


def small_batch(batch_size: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, 4, 1, 64, 32, generator=generator)
    labels = {"target": torch.tensor([[0.0, 0, 1, 1, 1]] * batch_size), "y_mask": torch.ones(batch_size, 5)}
    return {"images": images} | places(batch_size) | labels


def predict(model: MiraiModel, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model(batch)


def test_keys_and_shapes_are_those_of_checkpoints(model, own_golden):
    listed = {key: tuple(shape) for key, shape, _ in own_golden("formula_mirai").inputs["state_dict_keys"]}
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == listed
    assert len(listed) == own_golden("formula_mirai").inputs["n_state_dict_keys"] == 158


def test_parameter_counts(model):
    parameters = dict(model.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == 13_386_864
    assert sum(p.numel() for name, p in parameters.items() if name.startswith("transformer.")) == 2_210_352
    assert {name for name, p in parameters.items() if not p.requires_grad} == NEVER_TRAINED
    assert sum(p.numel() for p in parameters.values() if p.requires_grad) == 13_120_615
    with torch.device("meta"):
        frozen = MiraiModel(finetune_encoder=False)
    assert sum(p.numel() for p in frozen.parameters() if p.requires_grad) == 13_120_615 - 11_176_512


def test_aggregator(own_golden):
    case = own_golden("mirai_transformer")
    aggregator = case.load_into(AllImageTransformer(8, 8, num_layers=1, num_heads=2))
    indices = [case.tensor(name, torch.int64) for name in ("time_seq", "view_seq", "side_seq")]
    outputs = aggregator(case.tensor("x"), *indices)
    assert_close(outputs["logit"], case.tensor("logit"), rtol=1e-8, atol=1e-8)
    assert_close(outputs["transformer_hidden"], case.tensor("transformer_hidden"), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("compat", ["fixed", "reference"])
def test_whole_network(model, own_golden, formula_image, compat):
    case = own_golden("formula_mirai")
    images = torch.stack([formula_image(view, 2, 128, 96) for view in range(4)], dim=1).float()
    outputs = predict(with_options(model, compat=compat), {"images": images} | places(2))
    assert set(outputs) == {"logit", "transformer_hidden"}
    assert_close(outputs["logit"], case.tensor("logit", torch.float32), rtol=1e-4, atol=1e-5)
    hidden = outputs["transformer_hidden"]
    assert_close(hidden[..., :8], case.tensor("hidden_first8", torch.float32), rtol=1e-4, atol=1e-5)
    assert float(hidden.mean()) == pytest.approx(case.outputs["hidden_mean"], rel=1e-3, abs=1e-5)
    primary = MiraiModel.primary_risk(outputs)
    assert_close(primary, case.tensor("primary", torch.float32), rtol=1e-4, atol=1e-5)


def test_a_model_is_built_by_name_without_any_file(own_golden):
    built = build_model("mirai", compat="reference")
    listed = {key for key, _, _ in own_golden("formula_mirai").inputs["state_dict_keys"]}
    assert set(built.state_dict()) == listed
    small = build_model("mirai", hidden_dim=24, num_layers=2, num_heads=3, pool="GlobalMaxPool")
    assert small.state_dict()["transformer.transformer.transformer_layer_1.fc1.weight"].shape == (24, 24)
    assert not any(".pool." in key for key in small.state_dict())
    with pytest.raises(ConfigError, match="multiple of num_heads 7"):
        build_model("mirai", num_heads=7)


def test_pools_without_weights():
    x = torch.tensor([[[1.0, -5.0], [3.0, -1.0], [8.0, -9.0]]])
    present = torch.tensor([[True, True, False]])
    assert_close(GlobalMaxPool(2)(x, None), torch.tensor([[8.0, -1.0]]))
    assert_close(GlobalMaxPool(2)(x, present), torch.tensor([[3.0, -1.0]]))
    assert_close(GlobalAvgPool(2)(x, None), torch.tensor([[4.0, -5.0]]))
    assert_close(GlobalAvgPool(2)(x, present), torch.tensor([[2.0, -3.0]]))


@pytest.mark.parametrize("pool", ["Simple_AttentionPool", "GlobalMaxPool", "GlobalAvgPool"])
def test_an_empty_slot_changes_nothing(pool):
    torch.manual_seed(0)
    aggregator = AllImageTransformer(6, 8, num_layers=2, num_heads=2, pool=pool).double().eval()
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    time, view, side = (torch.tensor([row]) for row in ([0, 0, 0, 10], [0, 1, 0, 2], [1, 1, 0, 2]))
    three = aggregator(x[:, :3], time[:, :3], view[:, :3], side[:, :3])
    for content in (torch.zeros(6), 100 * torch.randn(6)):
        x[:, 3] = content
        four = aggregator(x, time, view, side)
        assert_close(four["logit"], three["logit"])
        assert_close(four["transformer_hidden"][:, :3], three["transformer_hidden"])
    reference = AllImageTransformer(6, 8, num_layers=2, num_heads=2, pool=pool, compat="reference").double().eval()
    reference.load_state_dict(aggregator.state_dict())
    assert not torch.allclose(reference(x, time, view, side)["logit"], three["logit"], rtol=1e-6)


def test_an_exam_that_lacks_an_image_is_scored_by_the_others(model):
    batch = small_batch()
    whole = predict(model, batch)["logit"]
    complete = predict(model, batch | {"view_mask": torch.ones(2, 4, dtype=torch.bool)})["logit"]
    assert_close(complete, whole, rtol=1e-5, atol=1e-6)

    mask = torch.tensor([[True, True, True, True], [True, False, True, True]])
    expected = predict(model, {key: value[1:, [0, 2, 3]] for key, value in batch.items() if key in KEYS})["logit"]
    for filler in (0.0, 1.0):
        batch["images"][1, 1] = filler
        found = predict(model, batch | {"view_mask": mask})["logit"]
        assert_close(found[:1], whole[:1], rtol=1e-5, atol=1e-6)
        assert_close(found[1:], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="no image at all"):
        model(batch | {"view_mask": mask & torch.tensor([[True], [False]])})


KEYS = ("images", "time_seq", "view_seq", "side_seq")


def test_missing_images_stay_out_of_batch_norm(model):
    mask = torch.tensor([[True, True, True, True], [True, False, True, True]])
    statistics = []
    for filler in (0.0, 1.0):
        trained = copy.deepcopy(model).train()
        batch = small_batch() | {"view_mask": mask}
        batch["images"][1, 1] = filler
        trained(batch)
        statistics.append(trained.image_encoder[0].bn1.running_mean.clone())
    assert torch.equal(*statistics)


def test_more_images_than_an_exam_has(model):
    batch = small_batch(1)
    twice = {key: torch.cat([batch[key], batch[key]], dim=1) for key in KEYS}
    twice["time_seq"][:, 4:] = 3
    outputs = predict(model, twice)
    assert outputs["transformer_hidden"].shape == (1, 8, 512)
    assert outputs["logit"].isfinite().all()


def test_risks_rise_with_time_and_sides_matter(model):
    model = copy.deepcopy(model)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.transformer.prob_of_failure_layer.hazard_fc.weight, std=0.1)
    batch = small_batch()
    logit = predict(model, batch)["logit"]
    assert (logit.diff(dim=1) >= 0).all() and (logit.diff(dim=1) > 0).any()
    swapped = predict(model, batch | {"side_seq": 1 - batch["side_seq"]})["logit"]
    assert not torch.allclose(swapped, logit, rtol=1e-4)


def test_mirai_normalisation(model):
    seen = {}
    other = with_options(model, input_norm="mirai")
    other.image_encoder.register_forward_pre_hook(lambda module, inputs: seen.update(encoder=inputs[0]))
    batch = small_batch()
    predict(other, batch)
    expected = (batch["images"].flatten(0, 1) * 65535 - 7047.99) / 12005.5
    assert_close(seen["encoder"], expected.expand(-1, 3, -1, -1))


def test_masking_replaces_images_in_training_only():
    torch.manual_seed(0)
    aggregator = AllImageTransformer(6, 8, num_layers=1, num_heads=2, mask_prob=0.5)
    assert aggregator.mask_embedding.weight.requires_grad
    x, view = torch.randn(64, 4, 6), torch.tensor([[0, 1, 0, 2]] * 64)
    time, side = torch.zeros_like(view), torch.zeros_like(view)
    seen: list[torch.Tensor] = []
    aggregator.projection_layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    aggregator.eval()(x, time, view, side)
    aggregator.train()(x, time, view, side)["logit"].sum().backward()
    assert torch.equal(seen[0], x)
    changed = (seen[1] != x).any(dim=-1)
    assert_close(seen[1][changed], aggregator.mask_embedding.weight[0].detach().expand(int(changed.sum()), -1))
    assert 0.4 < changed[:, :3].float().mean() < 0.6
    assert not changed[:, 3].any()  # the empty slot
    assert aggregator.mask_embedding.weight.grad is not None
    assert aggregator.mask_embedding.weight.grad[0].abs().sum() > 0
    assert aggregator.mask_embedding.weight.grad[1].abs().sum() == 0


@pytest.mark.parametrize("risk_factors", [False, True])
def test_training_reaches_every_trainable_parameter_and_repeats_bit_by_bit(risk_factors):
    torch.manual_seed(0)
    model = MiraiModel(risk_factors=risk_factors, dropout=0.1, mask_prob=0.25).train()
    loss: Any = MultiHeadBCE(model.risk_heads, model.head_weights)
    if risk_factors:
        loss = RiskAndFactorsLoss(loss, 0.25)
    gradients = []
    for _ in range(2):
        torch.manual_seed(1)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(small_batch())
            terms = loss(outputs, small_batch())
        assert outputs["logit"].dtype == torch.float32
        sum(total / weight.clamp(min=1) for total, weight in terms.values()).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert gradients[0].keys() == trainable
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in trainable)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == NEVER_TRAINED - {
        "transformer.mask_embedding.weight"
    }


def test_a_frozen_encoder_stays_as_it_is():
    torch.manual_seed(0)
    model = MiraiModel(finetune_encoder=False).train()
    assert model.training and not model.image_encoder.training
    before = {key: tensor.clone() for key, tensor in model.image_encoder.state_dict().items()}
    model(small_batch())["logit"].sum().backward()
    for key, tensor in model.image_encoder.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert all(p.grad is None for p in model.image_encoder.parameters())
    assert model.transformer.projection_layer.weight.grad is not None


def test_head_and_score_need_no_instance():
    outputs = {"logit": torch.zeros(2, 5)}
    batch = {"target": torch.ones(2, 5), "y_mask": torch.zeros(2, 5)}
    heads = MiraiModel.risk_heads(outputs, batch)
    assert list(heads) == list(MiraiModel.head_weights) == ["logit_output"]
    assert heads["logit_output"] == (outputs["logit"], batch["target"], batch["y_mask"])
    assert_close(MiraiModel.primary_risk(outputs), torch.full((2, 5), 0.5))


def test_bad_input_is_named():
    with torch.device("meta"):
        model = MiraiModel()
    good = small_batch()
    with pytest.raises(DataError, match="no images"):
        model({key: value for key, value in good.items() if key != "images"})
    with pytest.raises(DataError, match="no view_seq, side_seq"):
        model({key: value for key, value in good.items() if key not in ("view_seq", "side_seq")})
    with pytest.raises(DataError, match=r"2 exams of 4 images, but side_seq \(2, 3\)"):
        model(good | {"side_seq": good["side_seq"][:, :3]})
    with pytest.raises(DataError, match=r"80 x 32 pixels.* 96 x 32"):
        model(good | {"images": torch.zeros(2, 4, 1, 80, 32)})
    with pytest.raises(ConfigError, match="hidden_dim is 512"):
        MiraiModel(num_heads=7)


# Risk factors


@pytest.fixture(scope="module")
def with_factors() -> MiraiModel:
    torch.manual_seed(0)
    return MiraiModel(risk_factors=True).eval()


def test_risk_factor_keys_are_those_of_the_published_transformer(with_factors, model):
    own = {key.removeprefix("transformer."): tuple(t.shape) for key, t in with_factors.transformer.state_dict().items()}
    assert len(own) == 106
    assert len(with_factors.state_dict()) == 226
    plain = {key.replace("pool.", "pool.internal_pool.") for key in model.transformer.state_dict()}
    factors = {f"pool.{factor.name}_fc.{part}" for factor in RISK_FACTORS for part in ("weight", "bias")}
    assert with_factors.transformer.state_dict().keys() == plain | factors
    shapes = {key: tuple(tensor.shape) for key, tensor in with_factors.transformer.state_dict().items()}
    assert shapes["pool.race_fc.weight"] == (13, 512)
    assert shapes["prob_of_failure_layer.hazard_fc.weight"] == (5, 612)
    assert shapes["prob_of_failure_layer.base_hazard_fc.weight"] == (1, 612)
    assert shapes["fc.weight"] == (5, 612)


def test_given_factors_are_used_and_the_others_predicted(with_factors):
    batch = small_batch()
    seen: list[torch.Tensor] = []
    head = with_factors.transformer.prob_of_failure_layer
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    alone = predict(with_factors, batch)
    none_known = {"risk_factors": torch.full((2, 100), 7.0), "risk_factors_known": torch.zeros(2, 34)}
    nothing = predict(with_factors, batch | none_known)
    given, known = torch.zeros(2, 100), torch.zeros(2, 34)
    race = [factor.name for factor in RISK_FACTORS].index("race")
    start, end = OFFSETS[race], OFFSETS[race + 1]
    given[0, start + 2], known[0, race] = 1.0, 1.0
    some = predict(with_factors, batch | {"risk_factors": given, "risk_factors_known": known})
    hook.remove()

    predicted = alone["predicted_risk_factors"]
    assert predicted.shape == alone["risk_factor_logits"].shape == (2, 100)
    for factor, offset in zip(RISK_FACTORS, OFFSETS, strict=True):
        part = predicted[:, offset : offset + factor.width]
        assert ((part > 0) & (part < 1)).all()
        if factor.width > 1:
            assert_close(part.sum(dim=1), torch.ones(2))
    assert_close(seen[0][:, 512:], predicted)
    assert torch.equal(nothing["logit"], alone["logit"])

    used = seen[2][:, 512:]
    assert torch.equal(used[0, start:end], given[0, start:end])
    assert_close(torch.cat([used[0, :start], used[0, end:]]), torch.cat([predicted[0, :start], predicted[0, end:]]))
    assert_close(used[1], predicted[1])
    assert torch.equal(some["predicted_risk_factors"], predicted)  # what is given does not change what is predicted
    assert not torch.allclose(some["logit"][0], alone["logit"][0], rtol=1e-6)
    assert torch.equal(some["logit"][1], alone["logit"][1])


def test_loss_of_known_factors():
    torch.manual_seed(0)
    logits = torch.randn(2, 100, requires_grad=True)
    values, known = torch.zeros(2, 100), torch.zeros(2, 34)
    values[0, 3] = 1.0  # density D
    values[1, 5] = 1.0  # binary_biopsy_benign
    known[0, 0], known[1, 2], known[1, 3] = 1.0, 1.0, 1.0
    by_hand = -logits[0, :4].log_softmax(dim=0)[3]
    by_hand = by_hand - logits[1, 5].sigmoid().log() - (1 - logits[1, 6].sigmoid()).log()
    total = known_factor_entropy(logits, values, known)
    assert_close(total, by_hand)
    total.backward()
    assert set(logits.grad.nonzero()[:, 1].tolist()) == {0, 1, 2, 3, 5, 6}

    batch = {"target": torch.zeros(2, 5), "y_mask": torch.ones(2, 5)}
    outputs = {"logit": torch.zeros(2, 5), "risk_factor_logits": logits}
    loss = RiskAndFactorsLoss(MultiHeadBCE(MiraiModel.risk_heads, MiraiModel.head_weights), 0.25)
    complete = batch | {"risk_factors": values, "risk_factors_known": known}
    terms = loss(outputs, complete)
    assert set(terms) == {"logit_output", "risk_factors"}
    assert_close(terms["risk_factors"][0], 0.25 * by_hand)
    for given in (batch, complete):
        terms, weights = loss(outputs, given), loss.weights(given)
        assert {name: float(weight) for name, (_, weight) in terms.items()} == {k: float(v) for k, v in weights.items()}
    assert float(loss.weights(complete)["risk_factors"]) == 3
    assert loss(outputs, batch)["risk_factors"][0].item() == 0
    assert loss(outputs, batch)["risk_factors"][0].requires_grad
