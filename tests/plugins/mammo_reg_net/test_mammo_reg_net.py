"""The plugin `mammo_reg_net`: its loss, its metrics, its pictures, and a run whose weights the risk models take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from medtrain import Trainer, build_model
from medtrain.config import Layers
from medtrain.plugins import Plugins
from medtrain.weights.weights_file import weights_file
from medtrain_plugins.mammo_reg_net.losses import RegistrationLoss
from medtrain_plugins.mammo_reg_net.metrics import displacement, ncc, negative_jacobian, registration_metrics
from medtrain_plugins.mammo_reg_net.model import PairRegistration
from medtrain_plugins.mammo_reg_net.plots import checkerboard, gain_figure, red_cyan
from medtrain_plugins.mammography.model import registration_losses
from medtrain_plugins.mammography.model.registration import MammoRegNet, spatial_transform
from medtrain_plugins.mammography.weights.snapshots import load_registration
from torch.testing import assert_close


def pairs(count: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A batch and outputs that fit it."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, count, 1, 16, 12, generator=generator)
    flow = 2 * torch.randn(count, 2, 16, 12, generator=generator)
    outputs = {"warped": spatial_transform(images[1], flow), "affined": images[1] ** 2, "flow": flow}
    return {"current_image": images[0], "previous_image": images[1]}, outputs


def part(values: dict[str, torch.Tensor], which: slice) -> dict[str, torch.Tensor]:
    return {name: value[which] for name, value in values.items()}


def test_the_loss_is_a_mean_over_pairs_unless_the_published_one_is_asked_for() -> None:
    batch, outputs = pairs(4)
    for compat, additive in (("fixed", True), ("reference", False)):
        loss = RegistrationLoss(1.0, compat)
        whole = loss(outputs, batch)
        some, rest = (loss(part(outputs, which), part(batch, which)) for which in (slice(0, 1), slice(1, 4)))
        for name, value in whole.items():
            together = (some[name] + 3 * rest[name]) / 4
            assert torch.allclose(value, together, rtol=1e-5) == additive, (compat, name)


def test_the_published_loss_and_ours_on_twenty_pairs() -> None:
    batch, outputs = pairs(20)
    fixed, flow = batch["current_image"], outputs["flow"]
    published = RegistrationLoss(0.5, "reference")(outputs, batch)
    expected = {
        "affine": 1 - registration_losses.normalised_cross_correlation(fixed, outputs["affined"]),
        "warped": 1 - registration_losses.normalised_cross_correlation(fixed, outputs["warped"]),
        "regularisation": 0.5 * registration_losses.regularisation(flow, "reference"),
    }
    for name, value in published.items():
        assert_close(value, expected[name])
    ours = RegistrationLoss(0.5)(outputs, batch)
    assert_close(ours["regularisation"], 0.5 * registration_losses.regularisation(flow))
    assert list(ours) == list(published)


def test_raw_pixels_reach_the_network_and_come_back_in_the_unit_range() -> None:
    network = MammoRegNet()
    seen: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs))
    batch, _ = pairs(1)
    batch = {name: image.repeat(1, 1, 2, 4) for name, image in batch.items()}
    with torch.no_grad():
        outputs = PairRegistration(network, "raw")(batch)
    assert_close(seen, [batch["current_image"] * 65535, batch["previous_image"] * 65535])
    assert_close(outputs["warped"], spatial_transform(batch["previous_image"], outputs["flow"]))
    assert outputs["affined"].max() <= 1 + 1e-5


def test_metrics_of_known_pairs() -> None:
    batch, outputs = pairs(2)
    rows = torch.arange(16.0).view(1, 1, 16, 1)
    flow = torch.cat([torch.cat([-2 * rows, 0 * rows], 1), torch.cat([0 * rows + 3, 0 * rows + 4], 1)])
    outputs = outputs | {"flow": flow.expand(2, 2, 16, 12), "warped": 0.5 * batch["current_image"] + 0.2}
    batch["current_image"][1, :, :8] = 0  # air is not looked at
    assert_close(ncc(outputs, batch)[0], torch.tensor(1.0))
    assert negative_jacobian(outputs, batch).tolist() == [100, 0]
    assert_close(displacement(outputs, batch)[1], torch.tensor(5.0))
    still = outputs | {"flow": outputs["flow"] * (batch["current_image"] > 0)}
    assert_close(displacement(still, batch)[1], torch.tensor(5.0))

    metrics = registration_metrics()
    assert [(m.names, m.mode) for m in metrics] == [
        (["ncc"], "max"),
        (["ncc_before"], "max"),
        (["negative_jacobian"], "min"),
    ]
    rows_found = {k: v.numpy() for m in metrics for k, v in m.rows(outputs, batch).items()}
    assert metrics[2].compute(rows_found) == {"negative_jacobian": 50}
    assert np.isnan(metrics[0].compute({})["ncc"])


def test_overlay_and_checkerboard_show_both_images() -> None:
    fixed, moved = np.zeros((16, 8)), np.ones((16, 8))
    assert (red_cyan(moved, fixed) == [1, 0, 0]).all()
    assert (red_cyan(fixed, moved) == [0, 1, 1]).all()
    board = checkerboard(fixed, moved)
    assert board.mean() == 0.5
    assert board[0, 0] == 0 and board[0, 2] == 1 and board[2, 0] == 1
    gain = gain_figure({"ncc": np.array([0.9, 0.5]), "ncc_before": np.array([0.8, 0.6])})
    assert gain.axes[0].get_title() == "50% of pairs gain"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from medtrain_plugins.mammography.synthetic.synth import synthesize

    folder = tmp_path_factory.mktemp("cohorts") / "cohort"
    synthesize(folder, patients=6, seed=3, image_size=(32, 32), workers=1)
    return folder


@pytest.fixture(scope="module")
def trained(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run of one epoch."""
    values: dict[str, Any] = {
        "run": {"plugins": ["mammo_reg_net"]},
        "data": {"table": str(cohort), "batch_size": 8},
        "optimization": {"num_epochs": 1, "learning_rate": 1e-4, "weight_decay": 1e-6},
        "computational": {"device": "cpu"},
        "plugins": {"mammo_reg_net": {"image_size": [32, 32]}},
    }
    layers = Layers()
    layers.add(values, "test")
    config = layers.build(Plugins.of(["mammo_reg_net"]).options())
    trainer = Trainer(tmp_path_factory.mktemp("runs") / "run", config=config)
    trainer.train()
    return trainer


def test_the_optimizer_is_adam_with_the_configured_rate(trained: Trainer) -> None:
    optimizer = trained.plugins.first_result("build_optimizer", config=trained.config, model=torch.nn.Linear(2, 1))
    assert type(optimizer) is torch.optim.Adam
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(1e-4, 1e-6)]


def test_a_run_is_what_the_risk_models_take_as_registration(trained: Trainer) -> None:
    state = load_registration(weights_file(str(trained.path), "registration"))
    assert len(state) == 282
    network = build_model("mammo_reg_net", weights_file(str(trained.path), "registration"))
    assert type(network) is MammoRegNet
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


def test_evaluation_writes_pictures_and_prediction_repeats_its_numbers(trained: Trainer, cohort: Path) -> None:
    evaluation = trained.evaluate("test")
    folder = trained.report()
    plots = {path.stem for path in (folder / "plots").glob("*.png")}
    assert plots >= {"registration_gain", "registration_overlays"}
    for pair in evaluation.rows["sample_id"][np.argsort(evaluation.rows["ncc"])[[0, -1]]]:
        assert pair in (folder / "report.html").read_text()
    predicted = trained.predict(cohort / "test")
    assert {"patient_id", "view", "time_gap", "ncc_before", "ncc", "negative_jacobian", "displacement"} <= set(
        predicted
    )
    known = pd.DataFrame(evaluation.rows).set_index("sample_id")
    found = predicted.set_index("sample_id").loc[known.index]
    for name in known:
        np.testing.assert_allclose(found[name].to_numpy(), known[name].to_numpy(float), atol=1e-5)
    assert (found["displacement"] > 0).all()


def test_raw_pixels_are_also_used_for_predictions_and_pictures(trained: Trainer, cohort: Path) -> None:
    other = Trainer.from_maps(trained.path, assignments=["mammo_reg_net.pixel_scale=raw"])
    seen: list[float] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: seen.append(float(inputs[0].max())) if type(module) is MammoRegNet else None
    )
    try:
        other.predict(cohort / "test")
        other.evaluate("test")
        seen.append(-1)
        other.report()
    finally:
        hook.remove()
    assert min(value for value in seen if value >= 0) > 1
    assert seen[-1] != -1
