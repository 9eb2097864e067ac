"""OA-BreaCR: checkpoint compatibility, its parts against golden values, its whole against a plain transcription."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain.errors import DataError
from medtrain_plugins.oa_breacr.losses import OABreaCRLoss
from medtrain_plugins.oa_breacr.model import NORMS, AttentionPool, OABreaCR
from torch.nn import functional as F
from torch.testing import assert_close

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "oa_breacr.json").read_text())
SIZE = (128, 96)


@pytest.fixture(scope="module")
def model(formula_weights) -> OABreaCR:
    return formula_weights(OABreaCR(img_size=SIZE))


@pytest.fixture(scope="module")
def random_model() -> OABreaCR:
    """Formula weights all but saturate the embedding; with these every output depends on the images."""
    torch.manual_seed(0)
    model = OABreaCR(img_size=SIZE).eval()
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif name.endswith(("running_var", "bn.weight")):
            tensor.uniform_(0.7, 1.3)
        elif name.startswith(("pooling.norm", "flew")) and tensor.is_floating_point():
            tensor.normal_(std=0.7)
    return model


@pytest.fixture(scope="module")
def batch(formula_image) -> dict[str, Any]:
    images = {key: formula_image(s, 2, *SIZE).float() for s, key in enumerate(("current_image", "previous_image"))}
    return images | {"time_gap": torch.tensor([1, 3])}


def with_options(model: OABreaCR, **options: Any) -> OABreaCR:
    """The same weights under other options."""
    with torch.device("meta"):
        other = OABreaCR(**{"img_size": SIZE, **options})
    other.load_state_dict(model.state_dict(), assign=True)
    return other.eval()


def predict(model: OABreaCR, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model(batch)


def small_batch(exams: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    images = {key: torch.rand(exams, 1, 64, 32, generator=generator) for key in ("current_image", "previous_image")}
    return images | {
        "time_gap": torch.arange(exams) % 5 + 0.5,
        "years_to_cancer": torch.tensor([0, 3, 99, 5])[:exams],
        "years_to_last_followup": torch.tensor([1, 4, 2, 7])[:exams],
        "years_to_cancer_prior": torch.tensor([1, 4, 100, 6])[:exams],
        "years_to_last_followup_prior": torch.tensor([2, 5, 3, 8])[:exams],
    }


def total(terms: dict[str, Any]) -> torch.Tensor:
    values = [term if isinstance(term, torch.Tensor) else term[0] / term[1].clamp(min=1) for term in terms.values()]
    return torch.stack(values).sum()


def test_keys_and_shapes_are_those_of_checkpoints(model):
    listed = {key: tuple(shape) for key, shape, _ in GOLDEN["formula_oa_breacr"]["inputs"]["state_dict_keys"]}
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == listed
    assert len(listed) == 151


@pytest.mark.parametrize(("size", "count"), [((256, 192), 12_761_347), ((2048, 1664), 12_767_907)])
def test_parameter_counts(size, count):
    with torch.device("meta"):
        model, plain = OABreaCR(img_size=size), OABreaCR(img_size=size, use_poe=False)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    assert sum(p.numel() for p in plain.parameters()) == count
    assert sum(p.numel() for p in plain.parameters() if p.requires_grad) == count - 2 * (512 * 512 + 512)
    assert plain.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(("arch", "channels"), [("resnet34", 512), ("resnet50", 2048)])
def test_other_encoders(arch, channels):
    model = OABreaCR(arch=arch, img_size=(64, 32), max_t=3)
    out = model(small_batch(2))
    assert out["emb_final"].shape == (2, channels)
    assert out["final"].shape == (3, 2, 6)


def test_attention_pool():
    case = GOLDEN["oa_attention_pool"]
    pool = AttentionPool(3, (2, 3)).double()
    pool.load_state_dict({k: torch.tensor(v, dtype=torch.float64) for k, v in case["inputs"]["state_dict"].items()})
    hidden, attention = pool(torch.tensor(case["inputs"]["x"], dtype=torch.float64))
    assert_close(hidden, torch.tensor(case["outputs"]["hidden"], dtype=torch.float64), rtol=1e-8, atol=1e-8)
    assert_close(attention, torch.tensor(case["outputs"]["attention_map"], dtype=torch.float64), rtol=1e-8, atol=1e-8)


def test_primary_score():
    case = GOLDEN["oa_primary_score"]
    logits = torch.tensor(case["inputs"]["final_logits"], dtype=torch.float64)
    score = torch.tensor(case["outputs"]["score"], dtype=torch.float64)
    assert_close(OABreaCR.primary_risk({"final": logits}), score, rtol=1e-8, atol=1e-8)
    assert_close(OABreaCR.primary_risk({"final": logits.mean(dim=0)}), score, rtol=1e-8, atol=1e-8)
    certain = OABreaCR.primary_risk({"final": torch.tensor([[30.0, 30.1, 30.3, 29.0, 30.0, -90.0]])})
    assert certain.max() <= 1


def transcription(state: dict[str, torch.Tensor], batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The published description of the forward pass, in functions, eval mode, without samples."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def encode(x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x.repeat(1, 3, 1, 1), state["model.model.0.weight"], stride=2, padding=3)
        x = F.max_pool2d(F.relu(norm("model.model.1", x)), 3, stride=2, padding=1)
        for stage in range(4, 8):
            for block in range(2):
                name = f"model.model.{stage}.{block}"
                stride = 2 if stage > 4 and block == 0 else 1
                y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
                y = norm(
                    f"{name}.bn2", F.conv2d(F.relu(norm(f"{name}.bn1", y)), state[f"{name}.conv2.weight"], padding=1)
                )
                if stride == 2:
                    x = norm(f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=2))
                x = F.relu(x + y)
        return x

    def pool(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        b, c, h, w = x.shape
        scores = (x * state["pooling.attention_fc.weight"].view(1, c, 1, 1)).sum(1) + state["pooling.attention_fc.bias"]
        scores = scores.view(b, h * w)
        hidden = (x.view(b, c, h * w) * scores.softmax(1).unsqueeze(1)).sum(2)
        logs = scores.log_softmax(1)
        logs = (logs - logs.mean(1, keepdim=True)) / (logs.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return hidden, (logs * state["pooling.norm.weight"] + state["pooling.norm.bias"]).view(b, 1, h, w)

    def moved(x: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[2:]
        gx = torch.linspace(-1, 1, w).view(1, 1, w) + flow[:, 0] * 2 / (w - 1)
        gy = torch.linspace(-1, 1, h).view(1, h, 1) + flow[:, 1] * 2 / (h - 1)
        return F.grid_sample(x, torch.stack([gx, gy], dim=-1), align_corners=True)

    f_cur, f_pri = encode(batch["current_image"]), encode(batch["previous_image"])
    (h_cur, a_cur), (h_pri, a_pri) = pool(f_cur), pool(f_pri)
    flow = torch.cat([a_cur, a_pri], dim=1)
    for block in ("block1", "block2"):
        flow = F.relu(norm(f"flew.{block}.bn", F.conv2d(flow, state[f"flew.{block}.conv.weight"], padding=1)))
    h_diff = pool((f_cur - moved(f_pri, flow)).abs())[0]
    for row, years in enumerate(batch["time_gap"].tolist()):
        step = years * 239 / 5
        low, high = state["pos_encoding.pe"][int(step)], state["pos_encoding.pe"][int(step) + 1]
        h_diff[row] += low + (step - int(step)) * (high - low)
    fused = linear("mlp.3", F.gelu(linear("mlp.0", torch.cat([h_cur, h_pri, h_diff], dim=1))))
    emb = linear("POELatent.embed", fused)
    return {
        "final": linear("final", emb),
        "current": linear("final_single", h_cur),
        "prior": linear("final_single", h_pri),
        "difference": linear("difference_single", h_diff),
        "emb_final": emb,
        "log_var_final": linear("POELatent.log_var", fused),
        "flow_field": flow,
        "loss": 0.01 * (a_cur - moved(a_pri, flow)).pow(2).mean(),
    }


@pytest.mark.parametrize("weights", ["model", "random_model"])
def test_the_whole_equals_its_description(weights, batch, request):
    model = request.getfixturevalue(weights)
    expected = transcription(model.state_dict(), batch)
    assert expected["flow_field"].max() > 0.3  # the prior does move
    for use_sto in (True, False):
        out = predict(with_options(model, use_sto=use_sto), batch)
        assert out.keys() == expected.keys()
        for name, value in out.items():
            assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    risk = model.primary_risk(out)
    assert_close(risk, expected["final"].softmax(1).cumsum(1)[:, :5], rtol=1e-4, atol=1e-5)


def test_evaluation_repeats_bit_by_bit_and_training_follows_the_generator(model, batch):
    first, second = predict(model, batch), predict(model, batch)
    assert first["final"].shape == (2, 6)
    assert all(torch.equal(first[name], second[name]) for name in first)

    trained = copy.deepcopy(model).train()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(predict(trained, batch)["final"])
    assert draws[0].shape == (50, 2, 6)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].std(dim=0).min() > 0

    assert predict(with_options(model, max_t=3).train(), batch)["final"].shape == (3, 2, 6)
    assert predict(with_options(model, use_sto=False).train(), batch)["final"].shape == (2, 6)


def test_samples_have_the_mean_and_the_variance_of_the_embedding(model):
    many = with_options(model, max_t=20_000)
    many.training = True  # the model's own switch; dropout stays off
    fused = torch.linspace(-1, 1, 512).view(1, 512)
    with torch.no_grad():
        out = many.classify(fused)
        mean = many.final(out["emb_final"])
        var = out["log_var_final"].exp() @ many.final.weight.square().T
    assert_close(out["final"].mean(dim=0), mean, rtol=0, atol=5 * float((var / 20_000).sqrt().max()))
    assert_close(out["final"].var(dim=0), var, rtol=0.05, atol=0)


def test_input_normalisation(random_model, batch):
    model = random_model
    outputs = {norm: predict(with_options(model, input_norm=norm), batch)["final"] for norm in NORMS}
    seen: list[torch.Tensor] = []
    other = with_options(model, input_norm="imagenet")
    other.model["model"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    predict(other, batch)
    images = torch.cat([batch["current_image"], batch["previous_image"]])
    assert_close(seen[0][:, 2], (images[:, 0] - 0.406) / 0.225)
    shifted = {key: (value - 0.5) / 0.5 if key.endswith("image") else value for key, value in batch.items()}
    assert_close(predict(model, shifted)["final"], outputs["half"])
    assert not torch.allclose(outputs["none"], outputs["imagenet"], rtol=1e-3)


def test_images_of_another_size_read_an_interpolated_attention_norm(model, formula_image):
    batch = {key: formula_image(0, 2, 192, 160).float() for key in ("current_image", "previous_image")}
    out = predict(model, batch | {"time_gap": torch.ones(2)})
    assert out["flow_field"].shape == (2, 2, 6, 5)
    assert out["final"].isfinite().all()
    flat = AttentionPool(4, (4, 3))
    torch.nn.init.constant_(flat.norm.weight, 3.0)
    torch.nn.init.constant_(flat.norm.bias, 0.5)
    weight, bias = flat.norm_at((7, 5))
    assert_close((weight, bias), (torch.full((35,), 3.0), torch.full((35,), 0.5)))


OPTIONS = [{}, {"use_sto": False}, {"use_poe": False}]


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_reach_every_trainable_parameter(options):
    torch.manual_seed(0)
    model = OABreaCR(img_size=(64, 32), **options).train()
    loss = OABreaCRLoss(use_poe=model.use_poe)
    batch = small_batch()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch)
    assert all(value.dtype == torch.float32 for value in outputs.values())
    total(loss(outputs, batch)).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == (set() if model.use_poe else {"POELatent"})


@pytest.mark.parametrize("compat", ["fixed", "reference"])
def test_a_few_steps_lower_the_loss(compat):
    torch.manual_seed(0)
    model = OABreaCR(img_size=(64, 32), max_t=8).train()
    loss, batch = OABreaCRLoss(compat=compat), small_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    values = []
    for _ in range(12):
        value = total(loss(model(batch), batch))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-3:]) < 0.6 * sum(values[:3])


def test_heads_need_no_instance():
    outputs = {name: torch.zeros(2, 6) for name in OABreaCR.head_weights}
    batch = small_batch(2)
    heads = OABreaCR.risk_heads(outputs, batch)
    assert list(heads) == ["final", "current", "prior", "difference"]
    assert heads["prior"][1] is batch["years_to_cancer_prior"]
    assert heads["difference"][2] is batch["years_to_last_followup"]


def test_bad_images_are_named():
    with torch.device("meta"):
        model = OABreaCR(img_size=SIZE)
    with pytest.raises(DataError, match=r"OA-BreaCR needs the images .* no previous_image"):
        model({"current_image": torch.zeros(2, 1, 64, 64)})
    with pytest.raises(DataError, match="80 x 64"):
        model({key: torch.zeros(2, 1, 80, 64) for key in ("current_image", "previous_image")})
