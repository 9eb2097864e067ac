from __future__ import annotations

from typing import Any

import pytest
import torch
from medtrain.config import Layers
from medtrain.data import Data, split_groups
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.brain import Brain
from medtrain_plugins.brain.model.losses import ClassLoss, ReconstructionLoss, RegressionLoss, SegmentationLoss
from medtrain_plugins.brain.options import BrainOptions
from medtrain_plugins.brain.tasks import build_loss, build_metrics, build_model, infer_from_data, resolve_options
from torch.nn import functional
from torch.utils.data import Subset


class Volumes:
    """Random volumes with what a task needs."""

    def __init__(self, labels: list[Any], classes: bool = True, masks: int = 0) -> None:
        self.labels = labels
        self.classes = labels if classes else None
        self.masks = masks

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        sample = {"sample_id": str(index), "image": torch.randn(1, 8, 8, 8, generator=generator)}
        if self.masks:
            sample["mask"] = torch.randint(self.masks, (1, 8, 8, 8), generator=generator)
        return sample | {"label": self.labels[index]}


def batch_of(dataset: Volumes) -> dict[str, Any]:
    samples = [dataset[i] for i in range(len(dataset))]
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in ("image", "mask") if key in samples[0]}
    return batch | {"label": torch.tensor(dataset.labels), "sample_id": [sample["sample_id"] for sample in samples]}


def test_class_weights_are_divided_by_their_sum_over_all_processes() -> None:
    loss = ClassLoss([1.0, 5.0, 2.0])
    logits, label = torch.randn(7, 3), torch.tensor([0, 1, 2, 1, 0, 0, 2])
    halves = [loss({"logits": logits[part]}, {"label": label[part]}) for part in (slice(0, 2), slice(2, 7))]
    together = sum(half[0] for half in halves) / sum(half[1] for half in halves)
    expected = functional.cross_entropy(logits, label, weight=torch.tensor([1.0, 5.0, 2.0]))
    torch.testing.assert_close(together, expected)
    announced = loss.weights({"label": label})["loss"]
    torch.testing.assert_close(announced, halves[0][1] + halves[1][1])


def test_without_weights_the_loss_is_the_mean_of_the_samples() -> None:
    logits, label = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    torch.testing.assert_close(
        ClassLoss()({"logits": logits}, {"label": label}), functional.cross_entropy(logits, label)
    )
    smooth = ClassLoss(label_smoothing=0.2)({"logits": logits}, {"label": label})
    torch.testing.assert_close(smooth, functional.cross_entropy(logits, label, label_smoothing=0.2))
    sure = {"logits": torch.tensor([[9.0, -9.0]])}
    assert ClassLoss(focal=True)(sure, {"label": torch.tensor([0])}) < 1e-12


def test_the_focal_loss_weighs_by_the_missing_probability() -> None:
    logits, label = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    p = logits.softmax(1)[torch.arange(6), label]
    torch.testing.assert_close(
        ClassLoss(focal=True)({"logits": logits}, {"label": label}), (-((1 - p) ** 2) * p.log()).mean()
    )


def test_a_regression_loss_does_not_depend_on_the_unit() -> None:
    years, said = torch.tensor([60.0, 80.0]), torch.tensor([65.0, 70.0])
    for name in ("mse", "l1", "huber"):
        in_years = RegressionLoss(name, 10.0)({"prediction": said}, {"label": years})
        in_months = RegressionLoss(name, 120.0)({"prediction": said * 12}, {"label": years * 12})
        torch.testing.assert_close(in_years, in_months)


def test_the_segmentation_loss_falls_with_the_overlap_and_refuses_unknown_labels() -> None:
    mask = torch.zeros(2, 1, 8, 8, 8, dtype=torch.long)
    mask[:, :, 2:6, 2:6, 2:6] = 1
    right = functional.one_hot(mask[:, 0], 2).movedim(-1, 1).float() * 8
    for name in ("dice_ce", "dice", "cross_entropy"):
        loss = SegmentationLoss(name)
        batch = {"mask": mask, "sample_id": ["a", "b"]}
        assert loss({"logits": right}, batch) < 0.02 < loss({"logits": -right}, batch)
    mask[1, 0, 0, 0, 0] = 2
    with pytest.raises(DataError, match="b: its mask has labels beyond 0 to 1"):
        loss({"logits": right}, {"mask": mask, "sample_id": ["a", "b"]})


def test_reconstruction_losses_are_zero_for_the_image_itself() -> None:
    image = torch.rand(2, 1, 12, 12, 12)
    for name in ("mse", "l1", "ssim"):
        loss = ReconstructionLoss(name)
        assert loss({"reconstruction": image}, {"image": image}) == pytest.approx(0, abs=1e-5)
        assert loss({"reconstruction": image + 0.5 * torch.rand_like(image)}, {"image": image}) > 0.01


@pytest.mark.parametrize(
    ("task", "dataset", "network", "output", "main"),
    [
        ("classification", Volumes([0, 1, 2, 1]), {}, (4, 3), "balanced_accuracy"),
        ("regression", Volumes([60.0, 70.5, 80.0, 66.0], classes=False), {}, (4,), "mae"),
        ("segmentation", Volumes([0] * 4, masks=3), {"network": "UNet"}, (4, 3, 8, 8, 8), "dice"),
        ("reconstruction", Volumes([0] * 4), {"network": "AutoEncoder"}, (4, 1, 8, 8, 8), "psnr"),
    ],
)
def test_a_task_is_completed_from_its_data_and_can_learn(
    task: Any, dataset: Volumes, network: dict[str, Any], output: tuple[int, ...], main: str
) -> None:
    options = BrainOptions(task=task, label="x", **network)
    resolve_options(options, dataset)
    infer_from_data(options, dataset)
    assert options.input_shape == [1, 8, 8, 8]
    torch.manual_seed(0)
    model, loss, metrics = build_model(options), build_loss(options), build_metrics(options)
    assert metrics[0].names[0] == main
    batch = batch_of(dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    values = []
    for _ in range(12):
        value = loss(model(batch), batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert min(values[-3:]) < values[0]
    model.eval()
    with torch.no_grad():
        outputs = model(batch)
    assert next(iter(outputs.values())).shape == output
    for metric in metrics:
        rows = {key: torch.as_tensor(v).numpy() for key, v in metric.rows(outputs, batch).items()}
        assert set(metric.compute(rows)) == set(metric.names)


def test_what_follows_from_labels_is_learnt_once_and_from_the_training_group() -> None:
    options = BrainOptions(class_weights="balanced")
    resolve_options(options, Volumes([0, 0, 0, 1]))
    assert options.class_weights == "balanced" and options.classes == ["0", "1"]
    infer_from_data(options, Volumes([0, 0, 0, 1]))
    assert options.class_weights == pytest.approx([4 / 6, 2.0])
    infer_from_data(options, Volumes([0, 1, 1, 1]))
    assert options.class_weights == pytest.approx([4 / 6, 2.0])
    ages = BrainOptions(task="regression")
    infer_from_data(ages, Volumes([60.0, 80.0], classes=False))
    assert ages.label_scale == [70.0, 10.0]
    part = BrainOptions(task="regression")
    infer_from_data(part, Subset(Volumes([60.0, 10.0, 80.0, 90.0], classes=False), [0, 2]))
    assert part.label_scale == [70.0, 10.0]


def test_training_sees_no_label_of_those_held_out() -> None:
    plugin = Brain()
    for task, field, labels in (
        ("classification", "class_weights", [0] * 30 + [1] * 10),
        ("regression", "label_scale", [float(age) for age in range(60, 100)]),
    ):
        found = []
        for changed in (False, True):
            volumes = Volumes(list(labels), classes=task == "classification")
            split = split_groups(Data(whole=volumes), 0, 0.25, 0.25)
            if changed:  # what is held out becomes the other class, or a hundred years older
                for name in ("validation", "test"):
                    for row in split.groups[name].indices:  # type: ignore[attr-defined]
                        volumes.labels[row] = 1 - labels[row] if task == "classification" else labels[row] + 100
            layers = Layers()
            layers.add(
                {"run": {"plugins": ["brain"]}, "plugins": {"brain": {"task": task, "class_weights": "balanced"}}},
                "test",
            )
            config = layers.build({"brain": BrainOptions})
            plugin.build_metrics(config, split.as_data())
            found.append(getattr(config.options("brain"), field))
            build_loss(config.options("brain"))
        assert found[0] == found[1]
        assert all(isinstance(number, float) for number in found[0])


def test_a_regression_starts_at_the_mean_and_answers_in_the_unit_of_the_label() -> None:
    options = BrainOptions(task="regression", input_shape=[1, 8, 8, 8], label_scale=[70.0, 10.0])
    model = build_model(options).eval()
    for parameter in model.module.classifier[-1].parameters():
        torch.nn.init.zeros_(parameter)
    assert model({"image": torch.randn(2, 1, 8, 8, 8)})["prediction"].tolist() == [70.0, 70.0]


def test_standardised_images_have_no_unit() -> None:
    options = BrainOptions(input_shape=[1, 8, 8, 8], classes=["a", "b"])
    model = build_model(options).eval()
    image = torch.rand(2, 1, 8, 8, 8)
    found, scaled = (model({"image": x})["logits"] for x in (image, 700 * image + 30))
    torch.testing.assert_close(found, scaled, rtol=1e-3, atol=1e-4)
    raw = build_model(options.model_copy(update={"standardize": False})).eval()
    assert not torch.allclose(raw({"image": image})["logits"], raw({"image": 700 * image + 30})["logits"])


def test_what_a_task_cannot_use_is_said() -> None:
    with pytest.raises(DataError, match="one value only"):
        resolve_options(BrainOptions(), Volumes([0, 0]))
    with pytest.raises(ConfigError, match="3 weights for 2 classes"):
        build_loss(BrainOptions(class_weights=[1.0, 2.0, 3.0], classes=["a", "b"]))
    with pytest.raises(DataError, match="no classes"):
        resolve_options(BrainOptions(), Volumes([0.5], classes=False))
    with pytest.raises(DataError, match="no training image of class b"):
        infer_from_data(BrainOptions(class_weights="balanced", classes=["a", "b"]), Volumes([0, 0]))
    with pytest.raises(ConfigError, match="label_scale"):
        build_loss(BrainOptions(task="regression"))
    with pytest.raises(ConfigError, match="input_shape"):
        build_model(BrainOptions())
    with pytest.raises(ConfigError, match="names of at least two classes"):
        build_model(BrainOptions(input_shape=[1, 8, 8, 8]))
    with pytest.raises(ValueError, match="dice"):
        BrainOptions(loss="dice")
