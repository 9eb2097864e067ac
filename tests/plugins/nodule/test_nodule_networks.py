"""The networks: shapes, options, errors, and that they learn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain.errors import CheckpointError, ConfigError, DataError
from medtrain.protocols.model import unwrap
from medtrain_plugins.nodule.data.targets import make_targets
from medtrain_plugins.nodule.model.build import build_detector
from medtrain_plugins.nodule.model.detector import ResidualBlock
from medtrain_plugins.nodule.model.detector_loss import MapLoss, NoduleLoss
from medtrain_plugins.nodule.model.heads import TASKS, DetectorModel, DetectorOutput
from medtrain_plugins.nodule.model.networks import ReferenceUNet, import_reference_state
from nodule_golden import CASES
from torch import nn

SMALL: dict[str, Any] = {"base_filters": 4, "depth": 2}


def images(*size: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(0))


def shapes(output: DetectorOutput) -> dict[str, tuple[int, ...]]:
    return {name: tuple(v.shape) for name, v in output._asdict().items() if isinstance(v, torch.Tensor)}


# The published U-Net.


@pytest.mark.parametrize("name", CASES["model_params"])
def test_published_parameter_counts(name: str) -> None:
    case = CASES["model_params"][name]
    given = case["inputs"]
    with torch.device("meta"):
        model = ReferenceUNet(given["in_channels"], given["init_features"], given["depth"])
    counts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "buffers": sum(b.numel() for b in model.buffers()),
        "backbone": sum(p.numel() for p in model.backbone.parameters()),
    }
    assert counts == case["expected"]
    assert given["depth"] != 4 or len(model.state_dict()) == 126


@pytest.mark.parametrize("name", CASES["model_shapes"])
def test_published_shapes(name: str) -> None:
    case = CASES["model_shapes"][name]
    model = build_detector("reference_unet", base_filters=4, depth=2)
    image = torch.rand(case["inputs"]["input"])
    found = model.heads(image)  # type: ignore[operator]
    assert {key: list(value.shape) for key, value in found.items()} == case["expected"]
    assert shapes(model(image))["log_diameter"] == (2, 3, *image.shape[2:])


def test_weights_under_other_names_are_taken_over() -> None:
    torch.manual_seed(0)
    theirs, ours = ReferenceUNet(1, 4, 2).eval(), ReferenceUNet(1, 4, 2).eval()
    # Heads before the backbone, other names throughout.
    renamed = {}
    for name, value in sorted(theirs.state_dict().items(), key=lambda item: item[0].startswith("backbone")):
        renamed[name.replace("backbone.", "unet.").replace("encoders", "enc").replace("center_head", "centre")] = value
    ours.load_state_dict(import_reference_state(renamed, ours))
    image = images(8, 8, 8)
    for a, b in zip(theirs.heads(image).values(), ours.heads(image).values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="base_filters and depth"):
        import_reference_state(ReferenceUNet(1, 8, 2).state_dict(), ours)
    with pytest.raises(CheckpointError, match="entries"):
        import_reference_state(ReferenceUNet(1, 4, 3).state_dict(), ours)


# The residual U-Net.


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8, 8), (9, 10, 11), (13, 4, 17)])
def test_any_size_comes_back(size: tuple[int, int, int], stride: int) -> None:
    model = build_detector(**SMALL, output_stride=stride)  # type: ignore[arg-type]
    grid = tuple(-(-n // stride) for n in size)
    found = shapes(model(images(*size)))
    assert found["segmentation"] == (1, 1, *size) and found["heatmap"] == (1, 1, *grid)
    assert found["offset"] == found["log_diameter"] == (1, 3, *grid) and found["triage"] == (1, 1, *grid)


def test_padding_does_not_reach_the_result() -> None:
    model = build_detector(**SMALL, norm="batch").eval()
    image = images(12, 12, 12)
    padded = torch.cat([image, image[:, :, -1:].expand(-1, -1, 4, -1, -1)], dim=2)
    whole = model(padded).heatmap[:, :, :13]
    torch.testing.assert_close(model(padded[:, :, :13]).heatmap, whole)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"norm": "instance"}, nn.InstanceNorm3d),
        ({"norm": "group"}, nn.GroupNorm),
        ({"norm": "batch"}, nn.BatchNorm3d),
        ({"activation": "relu"}, nn.ReLU),
        ({"activation": "leaky_relu"}, nn.LeakyReLU),
        ({"activation": "elu"}, nn.ELU),
        ({"activation": "silu"}, nn.SiLU),
    ],
)
def test_layers_are_those_asked_for(options: dict[str, Any], kind: type[nn.Module]) -> None:
    model = build_detector(**SMALL, **options)
    found = {type(module) for module in model.modules()}
    norms = {nn.InstanceNorm3d, nn.GroupNorm, nn.BatchNorm3d}
    activations = {nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU}
    assert found & (norms if "norm" in options else activations) == {kind}
    model(images(8, 8, 8)).heatmap.sum().backward()


def test_dropout_is_random_in_training_only() -> None:
    model, image = build_detector(**SMALL, dropout=0.5), images(8, 8, 8)
    assert not torch.equal(model(image).heatmap, model(image).heatmap)
    model.eval()
    assert torch.equal(model(image).heatmap, model(image).heatmap)


def test_deep_supervision_gives_coarser_heatmaps_in_training() -> None:
    model = build_detector(base_filters=4, depth=3, deep_supervision=True, output_stride=1)
    deep = model(images(17, 16, 16)).deep_heatmaps
    assert [tuple(each.shape[2:]) for each in deep] == [(9, 8, 8), (5, 4, 4)] and model.deep_levels == 2
    assert model.eval()(images(16, 16, 16)).deep_heatmaps == ()


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_checkpointing_computes_again_and_changes_nothing(norm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = ResidualBlock.forward
    monkeypatch.setattr(ResidualBlock, "forward", lambda self, x: calls.append(1) or forward(self, x))
    results, counts, kept = [], [], []
    for checkpointing in (False, True):
        calls.clear()
        torch.manual_seed(0)
        model = build_detector(**SMALL, norm=norm, dropout=0.2, gradient_checkpointing=checkpointing)
        torch.manual_seed(1)
        sizes: list[int] = []
        pack = lambda t, sizes=sizes: sizes.append(t.numel()) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = model(images(8, 8, 8, batch=2)).heatmap.square().sum()
        loss.backward()
        backbone = model.backbone
        results.append([*[p.grad for p in backbone.parameters()], *backbone.buffers()])  # type: ignore[union-attr]
        counts.append(len(calls))
        kept.append(sum(sizes))
    assert counts[1] == 2 * counts[0]
    assert kept[1] < 0.6 * kept[0]
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_the_heatmap_begins_at_one_percent() -> None:
    model = build_detector(**SMALL)
    bias = model.heads.heads["heatmap"][-1].bias  # type: ignore[union-attr,index]
    assert float(bias.detach()) == pytest.approx(-4.59511985013459, abs=1e-6)
    found = model(images(16, 16, 16))
    assert 0.001 < float(found.heatmap.detach().sigmoid().mean()) < 0.1
    assert float(found.offset.detach().abs().max()) <= 0.5
    assert 4 < float(found.log_diameter.detach().exp().median()) < 16


def test_small_inputs_are_refused_clearly() -> None:
    with pytest.raises(DataError, match="at least 16 voxels"):
        build_detector(base_filters=2, depth=4)(images(16, 15, 16))
    with pytest.raises(DataError, match="at least 4 voxels"):
        build_detector("reference_unet", **SMALL)(images(3, 8, 8))
    for norm, batch in (("instance", 2), ("batch", 1)):
        with pytest.raises(DataError, match="one voxel after 2 halvings"):
            build_detector(**SMALL, norm=norm)(images(4, 4, 4, batch=batch))  # type: ignore[arg-type]
    assert build_detector(**SMALL, norm="group")(images(4, 4, 4)).heatmap.shape[2:] == (4, 4, 4)
    with pytest.raises(DataError, match=r"\(B, 1, D, H, W\)"):
        build_detector(**SMALL)(torch.zeros(1, 8, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "residual_unett"}, "did you mean 'residual_unet'"),
        ({"name": "no.such.Network"}, "cannot be imported"),
        ({"name": "torch.nn.functional.relu"}, "no torch.nn.Module class"),
        ({"name": "reference_unet", "dropout": 0.1}, "has no dropout"),
        ({"name": "SegResNet", "output_stride": 2}, "has no output_stride 2"),
        ({"norm": "layer"}, "instance, group, batch"),
        ({"activation": "gelu"}, "relu, leaky_relu, elu, silu"),
        ({"output_stride": 3}, "there are 1 and 2"),
        ({"depth": 0}, "at least once"),
        ({"dropout": 1.0}, "below 1"),
        ({"tasks": ("offset",)}, "cannot be left out"),
        ({"tasks": ("heatmap", "lobe")}, "no head 'lobe'"),
        ({"diameter_channels": 2}, "1 .a sphere's. or 3"),
    ],
)
def test_what_cannot_be_made_is_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_detector(**({"base_filters": 2, "depth": 2} | options))


@pytest.mark.parametrize(
    ("name", "options"),
    [("DynUNet", {"output_stride": 2, "depth": 3}), ("DynUNet", {"norm": "batch"}), ("SegResNet", {"norm": "group"})],
)
def test_networks_of_monai(name: str, options: dict[str, Any]) -> None:
    model = build_detector(name, **({"base_filters": 8, "depth": 2} | options))
    stride = options.get("output_stride", 1)
    found = model(images(18, 16, 17))
    assert shapes(found)["heatmap"] == (1, 1, -(-18 // stride), 16 // stride, -(-17 // stride))
    found.heatmap.sum().backward()
    with pytest.raises(ConfigError, match="no argument"):
        build_detector(name, base_filters=8, options={"nonsense": 1})


OWN = """
from torch import nn
class CustomDetector(nn.Module):
    def __init__(self, in_channels=1, out_channels=1):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=1)
    def forward(self, x):
        return self.conv(x)
class Whole(CustomDetector):
    def forward(self, x):
        return super().forward(x).mean(dim=(2, 3, 4))
class Mapping(CustomDetector):
    def forward(self, x):
        return {"center": super().forward(x)}
"""


def test_a_class_of_the_users_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_detector_module.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        model = DetectorModel(build_detector("own_detector_module.CustomDetector"))
        outputs = model({"image": images(5, 6, 7)})
        assert outputs.keys() == {"heatmap"} and outputs["heatmap"].shape == (1, 1, 5, 6, 7)
        features = build_detector("own_detector_module.CustomDetector", options={"out_channels": 6})
        assert features.tasks == TASKS and shapes(features(images(5, 6, 7)))["offset"] == (1, 3, 5, 6, 7)
        with pytest.raises(ConfigError, match="5 x 6 x 7 voxels are expected"):
            build_detector("own_detector_module.Whole")(images(5, 6, 7))
        with pytest.raises(ConfigError, match="returns dict"):
            build_detector("own_detector_module.Mapping")(images(5, 6, 7))
    finally:
        sys.modules.pop("own_detector_module", None)


# Under the loop's contract.


def test_state_is_the_detectors_and_holds_the_learned_weights() -> None:
    detector = build_detector(**SMALL, tasks=("heatmap", "offset"))
    model = DetectorModel(detector, learned_weights=True)
    assert unwrap(model) is detector and "log_variance" in detector.state_dict()
    outputs = model({"image": images(8, 8, 8)})
    assert outputs.keys() == {"heatmap", "offset", "log_variance"} and outputs["log_variance"].shape == (2,)


@pytest.mark.parametrize(
    ("options", "weighting"),
    [
        ({"output_stride": 2, "depth": 3, "deep_supervision": True, "norm": "batch"}, "learned"),
        ({"name": "reference_unet"}, "fixed"),
        ({"gradient_checkpointing": True}, "fixed"),
    ],
)
def test_every_task_learns(options: dict[str, Any], weighting: Any) -> None:
    torch.manual_seed(0)
    detector = build_detector(**(SMALL | options))
    model = DetectorModel(detector, weighting == "learned")
    # The published network has no prior, and the loss it was trained with needs none.
    heatmap = MapLoss("focal") if "name" in options else None
    loss = NoduleLoss(detector.tasks, heatmap=heatmap, weighting=weighting, deep_levels=detector.deep_levels)  # type: ignore[arg-type]
    made = make_targets((16,) * 3, [[7.3, 8.1, 6.6]], [6.0], [0.8], stride=detector.output_stride)  # type: ignore[arg-type]
    batch: dict[str, Any] = {name: value[None].repeat(2, 1, 1, 1, 1) for name, value in made.items()}
    away = (torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij")) - 7.5).square().sum(dim=0).sqrt()
    batch["mask"] = (away < 3).float()[None, None].repeat(2, 1, 1, 1, 1)
    batch["image"] = batch["mask"] + 0.1 * torch.randn(2, 1, 16, 16, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    plain = NoduleLoss(detector.tasks, heatmap=heatmap)  # type: ignore[arg-type]
    history = []
    for _ in range(25):
        optimizer.zero_grad()
        outputs = model(batch)
        sum(total / weight for total, weight in loss(outputs, batch).values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        history.append(
            {task: float((s / w).detach()) for task, (s, w) in plain(outputs, batch).items() if task in TASKS}
        )
    assert all(history[-1][task] < history[0][task] for task in detector.tasks), (history[0], history[-1])  # type: ignore[attr-defined]


def test_detectors_can_be_exported() -> None:
    model = build_detector(**SMALL, output_stride=2).eval()
    image = images(10, 12, 8)
    again = torch.export.export(model, (image,)).module()(image)
    for name, value in shapes(model(image)).items():
        assert tuple(getattr(again, name).shape) == value
    torch.testing.assert_close(again.heatmap, model(image).heatmap)
