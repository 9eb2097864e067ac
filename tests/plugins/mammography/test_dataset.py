from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from cohort_files import noise
from medtrain.errors import DataError
from medtrain_plugins.mammography.cohort import read_cohort
from medtrain_plugins.mammography.dataset import PairDataset, read_folder
from medtrain_plugins.mammography.exams import lmv_pairs
from medtrain_plugins.mammography.images import read_image
from torch.utils.data import DataLoader

IMAGES = ["current_image_cc", "current_image_mlo", "previous_image_cc", "previous_image_mlo"]


@pytest.fixture
def pairs(embed):
    return lmv_pairs(read_cohort(embed.write()))


def test_a_sample(embed, pairs):
    sample = PairDataset(pairs)[0]
    for key in IMAGES:
        _, time, _, view = ("", *key.split("_"))
        day = "2017-01-05" if time == "current" else "2015-08-03"
        path = embed.folder / "train" / f"101_L_{view.upper()}_{day}_1.png"
        assert torch.equal(sample[key], read_image(path))
        assert sample[key].shape == (1, 32, 24) and sample[key].dtype == torch.float32
    kinds = {key: (value.shape, value.dtype) for key, value in sample.items() if isinstance(value, torch.Tensor)}
    for key in ("target", "y_mask"):
        assert kinds[key] == ((5,), torch.float32)
    for key in ("event_times", "event_observed", "density", "cancer_type", "race"):
        assert kinds[key] == ((), torch.int64)
    assert kinds["time_gap"] == ((), torch.float32)
    # Cancer after two years: event year 1, years 0 and 1 are known.
    assert sample["target"].tolist() == [0, 1, 1, 1, 1] and sample["y_mask"].tolist() == [1, 1, 0, 0, 0]
    assert (sample["event_times"], sample["event_observed"]) == (1, 1)
    assert sample["time_gap"] == torch.tensor(521 / 365.25)
    names = {key: sample[key] for key in ("sample_id", "patient_id", "exam_id", "laterality")}
    assert names == {
        "sample_id": "101_2017-01-05_L",
        "patient_id": "101",
        "exam_id": "101_2017-01-05",
        "laterality": "L",
    }


def test_a_batch(pairs):
    batch = next(iter(DataLoader(PairDataset(pairs), batch_size=3)))
    assert batch["previous_image_mlo"].shape == (3, 1, 32, 24) and batch["target"].shape == (3, 5)
    assert batch["event_observed"].tolist() == [1, 0, 0] and batch["event_times"].dtype == torch.int64
    assert batch["patient_id"] == ["101", "101", "102"]


def test_what_the_core_asks(pairs):
    dataset = PairDataset(pairs)
    assert len(dataset) == len(dataset.sample_ids) == len(set(dataset.sample_ids)) == 8
    assert dataset.participants == [name.split("_")[0] for name in dataset.sample_ids]
    assert dataset.strata == [1, 1, 0, 0, 0, 0, 0, 0]  # by woman: both breasts of 101
    assert dataset.deterministic is True


def test_csaw_has_no_race(csaw):
    sample = PairDataset(lmv_pairs(read_cohort(csaw.write())))[2]
    assert "race" not in sample and sample["density"] == 2 and sample["time_gap"] == 2.0


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_the_cache_changes_nothing(pairs, cache_bytes):
    dataset = PairDataset(pairs, image_size=(16, 12), orientation="mirai", cache_bytes=cache_bytes)
    for _ in range(2):
        for key, column in zip(IMAGES, ("current_cc", "current_mlo", "previous_cc", "previous_mlo"), strict=True):
            wanted = read_image(pairs[column][5], (16, 12), "mirai")
            assert torch.equal(dataset[5][key], wanted)


def test_the_cache_is_used_only_when_everything_fits(embed, pairs):
    need = 32 * 32 * 24 * 2
    cached, uncached = PairDataset(pairs, cache_bytes=need), PairDataset(pairs, cache_bytes=need - 1)
    before = cached[0], uncached[0]
    shutil.rmtree(embed.folder)
    assert torch.equal(cached[0]["current_image_cc"], before[0]["current_image_cc"])
    with pytest.raises(DataError, match="cannot be read"):
        uncached[0]


def test_samples_do_not_share_memory_with_the_cache(pairs):
    dataset = PairDataset(pairs)
    first = dataset[0]["current_image_cc"]
    kept = first.clone()
    first.zero_()
    assert torch.equal(dataset[0]["current_image_cc"], kept) and kept.any()


def test_an_empty_table_is_refused(pairs):
    with pytest.raises(DataError, match="no samples"):
        PairDataset(pairs.iloc[:0])


def test_a_folder_without_table(embed, pairs):
    folder = read_folder(embed.folder / "train")
    labelled = pairs[pairs["group"] == "train"].reset_index(drop=True)
    assert folder["sample_id"].tolist() == labelled["sample_id"].tolist()
    assert len(read_folder(embed.folder)) == 8
    sample, known = PairDataset(folder)[1], PairDataset(labelled)[1]
    for key in [*IMAGES, "time_gap"]:
        assert torch.equal(sample[key], known[key])
    assert not {"target", "y_mask", "event_times", "event_observed"} & set(sample)
    assert sample["density"] == sample["cancer_type"] == -1


def test_folders_that_cannot_be_predicted(embed, tmp_path):
    embed.images["train/holiday.png"] = noise(90)
    embed.images["train/101_B_CC_2015-08-03_1.png"] = noise(91)
    embed.images["train/101_L_CC_2015-13-03_1.png"] = noise(92)
    embed.write()
    with pytest.raises(DataError, match="3 of 19 images are not named") as refused:
        read_folder(embed.folder / "train")
    assert "holiday.png" in str(refused.value)
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    embed.images = {"101_L_CC_2015-08-03_1.png": (noise(1) >> 8).astype(np.uint8)}
    embed.folder = tmp_path / "eight"
    embed.write()
    with pytest.raises(DataError, match="8 bits per pixel"):
        read_folder(embed.folder)
    embed.images = {"101_L_CC_2015-08-03_1.png": noise(1)}
    embed.write()
    with pytest.raises(DataError, match="no samples"):
        read_folder(embed.folder)
