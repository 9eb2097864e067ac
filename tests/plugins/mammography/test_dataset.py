from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from cohort_files import noise
from medtrain.errors import DataError
from medtrain_plugins.mammography.cohort.cohort import read_cohort
from medtrain_plugins.mammography.cohort.dataset import ExamDataset, read_folder
from medtrain_plugins.mammography.cohort.exams import lmv_pairs
from medtrain_plugins.mammography.cohort.images import read_image
from medtrain_plugins.mammography.cohort.samples import BREAST_PAIRS, EXAMS, VIEW_PAIRS, exam_visits
from torch.utils.data import DataLoader

IMAGES = ["current_image_cc", "current_image_mlo", "previous_image_cc", "previous_image_mlo"]


@pytest.fixture
def pairs(embed):
    return lmv_pairs(read_cohort(embed.write()))


def test_a_sample(embed, pairs):
    sample = ExamDataset(pairs, BREAST_PAIRS)[0]
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
    batch = next(iter(DataLoader(ExamDataset(pairs, BREAST_PAIRS), batch_size=3)))
    assert batch["previous_image_mlo"].shape == (3, 1, 32, 24) and batch["target"].shape == (3, 5)
    assert batch["event_observed"].tolist() == [1, 0, 0] and batch["event_times"].dtype == torch.int64
    assert batch["patient_id"] == ["101", "101", "102"]


def test_what_the_core_asks(pairs):
    dataset = ExamDataset(pairs, BREAST_PAIRS)
    assert len(dataset) == len(dataset.sample_ids) == len(set(dataset.sample_ids)) == 8
    assert dataset.participants == [name.split("_")[0] for name in dataset.sample_ids]
    assert dataset.strata == [1, 1, 0, 0, 0, 0, 0, 0]  # by woman: both breasts of 101
    assert dataset.deterministic is True


def test_csaw_has_no_race(csaw):
    sample = ExamDataset(lmv_pairs(read_cohort(csaw.write())), BREAST_PAIRS, layout="csaw")[2]
    assert "race" not in sample and sample["density"] == 2 and sample["time_gap"] == 2.0


def test_a_view_and_its_prior(embed):
    dataset = ExamDataset(VIEW_PAIRS.make(read_cohort(embed.write())), VIEW_PAIRS)
    assert len(dataset) == 16
    sample = dataset[1]
    assert sample["sample_id"] == "101_2017-01-05_L_MLO"
    for time, day in (("current", "2017-01-05"), ("previous", "2015-08-03")):
        name = f"101_L_MLO_{day}_1.png"
        assert torch.equal(sample[f"{time}_image"], read_image(embed.folder / "train" / name))
        assert sample[f"{time}_image_id"] == name
    assert sample["target"].tolist() == [0, 1, 1, 1, 1] and sample["target_prior"].tolist() == [0, 0, 1, 1, 1]
    assert sample["y_mask_prior"].tolist() == [1, 1, 1, 0, 0] and sample["previous_event_times"] == 2
    # The class of the event is counted from 0, the follow-up from 1.
    assert (sample["years_to_cancer"], sample["years_to_cancer_prior"]) == (1, 2)
    assert (sample["years_to_last_followup"], sample["years_to_last_followup_prior"]) == (2, 3)
    assert dataset[4]["years_to_cancer"] == 5  # none
    assert dataset.classes == [1, 1] + 14 * [0]


def test_an_exam(embed):
    dataset = ExamDataset(EXAMS.make(read_cohort(embed.write())), EXAMS)
    sample = dataset[0]
    assert len(dataset) == 8 and sample["sample_id"] == "101_2015-08-03"
    for place, (side, view) in enumerate([("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")]):
        path = embed.folder / "train" / f"101_{side}_{view}_2015-08-03_1.png"
        assert torch.equal(sample["images"][place], read_image(path))
    assert sample["view_seq"].tolist() == [0, 1, 0, 1] and sample["side_seq"].tolist() == [1, 1, 0, 0]
    assert sample["time_seq"].tolist() == [0] * 4 and "laterality" not in sample
    assert dataset.classes == [1, 1, 0, 0, 0, 0, 0, 0]  # a cancer on the left makes it the exam's


def test_visits(embed):
    cohort = read_cohort(embed.write())
    dataset = ExamDataset(exam_visits(2).make(cohort), exam_visits(2))
    sample = dataset[0]
    assert len(dataset) == 4 and sample["images"].shape == (2, 4, 1, 32, 24)
    for visit, day in enumerate(("2015-08-03", "2017-01-05")):
        path = embed.folder / "train" / f"101_R_CC_{day}_1.png"
        assert torch.equal(sample["images"][visit, 2], read_image(path))
    assert sample["view_mask"].all() and sample["exam_mask"].tolist() == [True, True]
    longer = ExamDataset(exam_visits(3).make(cohort), exam_visits(3))[0]
    assert longer["exam_mask"].tolist() == [False, True, True]
    assert not longer["images"][0].any() and torch.equal(longer["images"][1:], sample["images"])
    assert longer["time_gap"] == sample["time_gap"] == torch.tensor(521 / 365.25)


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_the_cache_changes_nothing(pairs, cache_bytes):
    dataset = ExamDataset(pairs, BREAST_PAIRS, image_size=(16, 12), orientation="mirai", cache_bytes=cache_bytes)
    for _ in range(2):
        for key, column in zip(IMAGES, ("current_cc", "current_mlo", "previous_cc", "previous_mlo"), strict=True):
            wanted = read_image(pairs[column][5], (16, 12), "mirai")
            assert torch.equal(dataset[5][key], wanted)


def test_the_cache_is_used_only_when_everything_fits(embed, pairs):
    need = 32 * 32 * 24 * 2
    cached, uncached = (
        ExamDataset(pairs, BREAST_PAIRS, cache_bytes=need),
        ExamDataset(pairs, BREAST_PAIRS, cache_bytes=need - 1),
    )
    before = cached[0], uncached[0]
    shutil.rmtree(embed.folder)
    assert torch.equal(cached[0]["current_image_cc"], before[0]["current_image_cc"])
    with pytest.raises(DataError, match="cannot be read"):
        uncached[0]


def test_samples_do_not_share_memory_with_the_cache(pairs):
    dataset = ExamDataset(pairs, BREAST_PAIRS)
    first = dataset[0]["current_image_cc"]
    kept = first.clone()
    first.zero_()
    assert torch.equal(dataset[0]["current_image_cc"], kept) and kept.any()


def test_an_empty_table_is_refused(pairs):
    with pytest.raises(DataError, match="no samples"):
        ExamDataset(pairs.iloc[:0], BREAST_PAIRS)


def test_a_folder_without_table(embed, pairs):
    folder = lmv_pairs(read_folder(embed.folder / "train"))
    labelled = pairs[pairs["group"] == "train"].reset_index(drop=True)
    assert folder["sample_id"].tolist() == labelled["sample_id"].tolist()
    assert len(lmv_pairs(read_folder(embed.folder))) == 8
    sample, known = ExamDataset(folder, BREAST_PAIRS)[1], ExamDataset(labelled, BREAST_PAIRS)[1]
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
        lmv_pairs(read_folder(embed.folder))
