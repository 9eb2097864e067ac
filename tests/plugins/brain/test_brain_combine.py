"""Arrays in memory, several cohorts, aligned and unaligned images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medtrain.data import Data, Loader, split_groups
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.brain.data.combined import ArrayDataset, ConcatDataset, PairedDataset, UnpairedDataset
from medtrain_plugins.brain.data.dataset import BidsDataset
from medtrain_plugins.brain.synth import synthesize


def arrays(count: int = 6, value: float = 0, **settings: Any) -> ArrayDataset:
    images = torch.arange(count).view(-1, 1, 1, 1, 1).repeat(1, 1, 4, 4, 4) + value
    settings.setdefault("labels", torch.arange(count) % 2)
    return ArrayDataset(images.float(), **settings)


def test_arrays_are_samples_like_those_of_a_tree() -> None:
    dataset = arrays(masks=torch.ones(6, 1, 4, 4, 4), sessions=["ses-1", "ses-2"] * 3, participants=list("aabbcc"))
    sample = dataset[3]
    assert sample["sample_id"] == "b_ses-2" and sample["participant_id"] == "b" and sample["session_id"] == "ses-2"
    assert sample["image"].dtype == torch.float32 and sample["mask"].dtype == sample["label"].dtype == torch.int64
    assert dataset.classes == [0, 1] * 3 and dataset.deterministic
    assert arrays(labels=np.linspace(0, 1, 6))[1]["label"].dtype == torch.float32
    assert sample["spacing"].tolist() == [1, 1, 1]
    fine = arrays(spacing=[1, 1, 2], transforms=[{"name": "Spacing", "pixdim": [1, 1, 1]}])
    assert fine[2]["spacing"].tolist() == [1, 1, 1] and fine[2]["image"].shape == (1, 4, 4, 7)
    scaled = arrays(transforms=[{"name": "ShiftIntensity", "offset": 3}])
    assert scaled[2]["image"].unique().tolist() == [5]
    split = split_groups(Data(whole=dataset), 0, 0.34, 0)
    assert {len(group) for group in split.groups.values()} == {2, 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": [1, 2]}, "there are 6 images, but labels: 2"),
        ({"participants": list("aabbcc")}, "several images of one session"),
        ({"participants": list("abc")}, "participants: 3"),
        ({"spacing": [1, 1]}, "spacing: 3 lengths"),
    ],
)
def test_arrays_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        arrays(**settings)
    with pytest.raises(DataError, match=r"\(N, C, D, H, W\)"):
        ArrayDataset(torch.zeros(3, 4))


def test_equal_ids_of_two_cohorts_are_two_persons(tmp_path: Path) -> None:
    for seed, name in enumerate(("ADNI", "OASIS")):
        synthesize(tmp_path / name, 4, sessions=1, sites=1, size=12, seed=seed)
    parts = {name: BidsDataset(tmp_path / name, label="diagnosis") for name in ("ADNI", "OASIS")}
    assert parts["ADNI"].participants == parts["OASIS"].participants
    both = ConcatDataset(parts)
    assert len(set(both.participants)) == len(set(both.sample_ids)) == len(both) == 8
    assert both[5]["sample_id"] == both.sample_ids[5].replace("ADNI", "") and both[5]["cohort"] == "OASIS"
    assert both[5]["participant_id"] == both.participants[5]
    assert torch.equal(both[5]["image"], parts["OASIS"][1]["image"])
    assert both.classes == (parts["ADNI"].classes or []) + (parts["OASIS"].classes or [])
    other = BidsDataset(tmp_path / "OASIS", label="diagnosis", class_names=["CN", "AD"])
    with pytest.raises(DataError, match="number their classes differently"):
        ConcatDataset({"ADNI": parts["ADNI"], "OASIS": other})


def test_aligned_images_by_key_and_as_channels() -> None:
    parts = {"t1w": arrays(), "flair": arrays(value=100)}
    by_key = PairedDataset(parts)
    assert "image" not in by_key[2] and float(by_key[2]["t1w"].mean()) == 2 and float(by_key[2]["flair"].mean()) == 102
    stacked = PairedDataset(parts, channels=True)
    assert stacked[2]["image"].mean((1, 2, 3)).tolist() == [2, 102]
    assert stacked.classes == parts["t1w"].classes and stacked.participants == parts["t1w"].participants


def test_incomplete_pairs_are_told_or_left_out() -> None:
    parts = {"t1w": arrays(6), "flair": arrays(4, value=100)}
    with pytest.raises(DataError, match=r"2 of 6 samples are incomplete.*\n.*sub-0004_ses-1: no flair"):
        PairedDataset(parts)
    assert len(PairedDataset(parts, missing="skip")) == 4
    with pytest.raises(DataError, match="no sample is in all"):
        PairedDataset({"a": arrays(2, participants=["a", "b"]), "b": arrays(2)}, missing="skip")


def test_one_draw_moves_all_images_of_a_pair() -> None:
    ramp = torch.arange(6 * 64.0).view(6, 1, 4, 4, 4)
    parts = {"t1w": ArrayDataset(ramp), "flair": ArrayDataset(2 * ramp)}
    flips = [{"name": "RandFlip", "prob": 0.5, "spatial_axis": axis} for axis in range(3)]
    for channels in (False, True):
        paired = PairedDataset(parts, channels, augmentations=flips)
        torch.manual_seed(0)
        for row in range(6):
            sample = paired[row]
            one, other = sample["image"] if channels else (sample["t1w"], sample["flair"])
            assert torch.equal(2 * one, other)
        assert torch.equal(paired.evaluation()[1]["image" if channels else "t1w"][:1], ramp[1])
    with pytest.raises(ConfigError, match="of its own"):
        PairedDataset({"t1w": ArrayDataset(ramp, augmentations=flips), "flair": parts["flair"]})


def test_unaligned_images_are_paired_anew_by_epoch_and_alike_by_seed() -> None:
    dataset = UnpairedDataset({"t1w": arrays(8), "pet": arrays(5, value=100)})
    assert len(dataset) == 8 and not dataset.deterministic

    def partners(epoch: int, workers: int = 0, first: int = 0) -> list[str]:
        loader = Loader(dataset, 2, seed=1, shuffle=True, num_workers=workers)
        try:
            return [name for item in loader.epoch(epoch, first) for name in item.batch["partner_id"]]
        finally:
            loader.close()

    assert partners(0) == partners(0, workers=2) and partners(0)[4:] == partners(0, first=2)
    assert partners(0) != partners(1)
    plain = dataset.evaluation()
    assert [plain[row]["partner_id"] for row in range(8)] == [f"sub-{row % 5:04d}_ses-1" for row in range(8)]
    assert float(plain[7]["pet"].mean()) == 102 and float(plain[7]["t1w"].mean()) == 7


def test_the_smaller_of_two_repeats_itself_on_request() -> None:
    dataset = UnpairedDataset({"pet": arrays(2), "t1w": arrays(5)}, oversample=True)
    assert dataset.sample_ids[1:4] == ["sub-0001_ses-1", "sub-0000_ses-1_again-1", "sub-0001_ses-1_again-1"]
    assert len(set(dataset.sample_ids)) == 5 and dataset.participants[4] == "sub-0000"
