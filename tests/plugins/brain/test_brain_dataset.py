"""The dataset: samples, problems found before training, caches, parts, and what a run makes of it."""

from __future__ import annotations

import inspect
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from medtrain import RunConfig
from medtrain.data import Data, Loader, split_groups
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.brain import synth
from medtrain_plugins.brain.build_data import open_cohort
from medtrain_plugins.brain.data.check import check_tree
from medtrain_plugins.brain.data.dataset import BidsDataset
from medtrain_plugins.brain.options import BrainOptions
from medtrain_plugins.brain.synth import synthesize

SIZE = 12


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    synthesize(tmp_path / "tree", 6, sessions=2, sites=1, size=SIZE)
    return tmp_path / "tree"


def image_of(tree: Path, number: int, session: str = "ses-M000") -> Path:
    name = sorted(path.name for path in tree.glob("sub-*"))[number]
    return tree / name / session / "anat" / f"{name}_{session}_T1w.nii.gz"


def mask_of(tree: Path, number: int) -> Path:
    path = image_of(tree, number).relative_to(tree)
    return tree / "derivatives/segmentation" / str(path).replace("_T1w", "_dseg")


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(array, nibabel.load(path).affine if affine is None else affine), path)


def test_samples_hold_the_voxels_of_the_files(tree: Path) -> None:
    dataset = BidsDataset(tree, label="diagnosis", masks="Segmentation", columns=["age", "site"])
    assert len(dataset) == 12 and len(set(dataset.sample_ids)) == 12
    sample = dataset[3]
    assert sample["sample_id"] == f"{sample['participant_id']}_{sample['session_id']}" == dataset.sample_ids[3]
    path = image_of(tree, 1, "ses-M006")
    np.testing.assert_array_equal(sample["image"][0], nibabel.load(path).get_fdata(dtype=np.float32))
    assert sample["image"].dtype == torch.float32 and sample["image"].is_contiguous()
    assert sample["mask"].dtype == torch.int64 and sample["mask"].shape == (1, SIZE, SIZE, SIZE)
    assert sample["label"].dtype == torch.int64 and int(sample["label"]) == dataset.classes[3]  # type: ignore[index]
    assert sample["age"].dtype == torch.float32 and sample["site"] == "siteA"
    np.testing.assert_allclose(dataset.affine(3), nibabel.load(path).affine)
    regression = BidsDataset(tree, label="age", task="regression")
    assert regression[0]["label"].dtype == torch.float32 and regression.classes is None


def test_everything_wrong_is_told_at_once_and_by_file(tree: Path, tmp_path: Path) -> None:
    image_of(tree, 0).unlink()
    save(image_of(tree, 1), np.zeros((SIZE, SIZE, SIZE, 2), np.int16))
    cut = image_of(tree, 2)
    cut.write_bytes(cut.read_bytes()[:-200])
    image_of(tree, 3).write_bytes(b"not an image")
    shifted = nibabel.load(mask_of(tree, 4)).affine.copy()
    shifted[0, 3] += 30
    save(mask_of(tree, 4), np.zeros((SIZE, SIZE, SIZE), np.uint8), shifted)
    flat = nibabel.Nifti1Image(np.ones((SIZE, SIZE, SIZE), np.int16), None)
    flat.header.set_sform(np.diag([1.0, 0, 1, 1]), code=1)
    nibabel.save(flat, image_of(tree, 5))
    save(image_of(tree, 5, "ses-M006"), np.zeros((SIZE, SIZE, SIZE + 1), np.int16))
    with (tree / "participants.tsv").open("a") as table:
        table.write("sub-GONE\tF\t70\tsiteA\tAD\n")
    with pytest.raises(DataError) as caught:
        BidsDataset(tree, label="diagnosis", masks="Segmentation")
    text = str(caught.value)
    for expected in (
        "8 problems",
        "ses-M000: no file anat/*_T1w{.nii.gz,.nii} in this session",
        f"{image_of(tree, 1)}: the image has 4 dimensions (12, 12, 12, 2), 3 are wanted",
        f"{cut}: the compressed file is cut short",
        f"{image_of(tree, 3)}: not a NIfTI file",
        f"{mask_of(tree, 4)}: the mask's affine differs",
        f"{image_of(tree, 5)}: the affine is degenerate",
        "the mask has 12 x 12 x 12 voxels, its image 12 x 12 x 13",
        "sub-GONE: named in participants.tsv",
    ):
        assert expected in text
    rest = BidsDataset(tree, label="diagnosis", masks="Segmentation", exclude="skip")
    assert len(rest) == 5 and len(rest.about["excluded"]) == 8
    assert check_tree(tree, masks="Segmentation", label="diagnosis")[0] == 5
    with pytest.raises(DataError, match="no session has an image"):
        BidsDataset(tree, "FLAIR", exclude="skip")


def test_other_shapes_are_a_problem_unless_something_makes_them_alike(tree: Path) -> None:
    save(image_of(tree, 0), np.ones((SIZE, SIZE, SIZE + 2), np.int16))
    with pytest.raises(DataError, match=r"12 x 12 x 14 voxels, most have 12 x 12 x 12; resize"):
        BidsDataset(tree)
    assert BidsDataset(tree, extraction={"kind": "patch", "size": 6}).about["shapes"] == {
        "12 x 12 x 12": 11,
        "12 x 12 x 14": 1,
    }


def test_contents_are_looked_at_on_request(tree: Path) -> None:
    values = np.ones((SIZE, SIZE, SIZE), np.float32)
    values[0, 0, :3] = np.nan
    save(image_of(tree, 0), values)
    save(image_of(tree, 1), np.full((SIZE, SIZE, SIZE), 4, np.int16))
    save(mask_of(tree, 2), np.full((SIZE, SIZE, SIZE), 0.5, np.float32))
    count, problems = check_tree(tree, masks="Segmentation")
    assert count == 9
    assert [text.split(": ", 1)[1].split(";")[0] for text in problems] == [
        "3 voxels are NaN or infinite",
        "the image is blank, every voxel is 4",
        "the mask has values that are not whole numbers",
    ]
    assert check_tree(tree, masks="Segmentation", contents=False) == (12, [])
    with pytest.raises(DataError, match="3 voxels are NaN"):
        BidsDataset(tree)[0]
    assert BidsDataset(tree, non_finite="zero")[0]["image"].sum() == SIZE**3 - 3


def test_a_table_chooses_sessions_and_describes_them(tree: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in tree.glob("sub-*"))
    rows = pd.DataFrame({"participant_id": names[:3], "session_id": "ses-M006", "score": [0.5, 1.5, 2.5]})
    dataset = BidsDataset(tree, data=rows, label="score", task="regression", columns=["sex"])
    assert dataset.sample_ids == [f"{name}_ses-M006" for name in names[:3]]
    assert [float(dataset[row]["label"]) for row in range(3)] == [0.5, 1.5, 2.5]
    rows.drop(columns="session_id").to_csv(tmp_path / "rows.tsv", sep="\t", index=False)
    assert len(BidsDataset(tree, data=tmp_path / "rows.tsv")) == 6
    rows.loc[0, "session_id"] = "ses-M099"
    rows.loc[1, "score"] = np.nan
    with pytest.raises(DataError, match=r"(?s)2 problems.*no folder of this session.*no value of score"):
        BidsDataset(tree, data=rows, label="score", task="regression")
    with pytest.raises(DataError, match=r"no table has the column 'diagnose'.*did you mean 'diagnosis'"):
        BidsDataset(tree, label="diagnose")
    with pytest.raises(DataError, match="several rows"):
        BidsDataset(tree, data=pd.concat([rows, rows]))


def test_classes_can_be_fixed_in_order(tree: Path) -> None:
    assert BidsDataset(tree, label="diagnosis").class_names == ["AD", "CN"]
    dataset = BidsDataset(tree, label="diagnosis", class_names=["CN", "MCI", "AD"])
    assert set(dataset.classes or ()) == {0, 2}
    assert dataset.about["images_by_class"] == {"CN": 6, "MCI": 0, "AD": 6}
    with pytest.raises(DataError, match="the classes are CN, MCI"):
        BidsDataset(tree, label="diagnosis", class_names=["CN", "MCI"])


def test_strata_take_several_and_continuous_columns(tmp_path: Path) -> None:
    synthesize(tmp_path / "tree", 24, sessions=1, sites=2, size=SIZE)
    dataset = BidsDataset(tmp_path / "tree", stratify=["site", "age"])
    assert {text.split()[0] for text in dataset.strata} == {"siteA", "siteB"}
    assert {text.split()[1] for text in dataset.strata} == {"0", "1", "2", "3"}


def test_canonical_turns_image_and_mask(tree: Path) -> None:
    path = image_of(tree, 0)
    image = nibabel.load(path)
    voxels = np.array(image.dataobj)
    mirrored = image.affine @ np.array([[-1.0, 0, 0, SIZE - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    save(path, voxels[::-1], mirrored)
    save(mask_of(tree, 0), (voxels > 100)[::-1].astype(np.uint8), mirrored)
    sample = BidsDataset(tree, masks="Segmentation", canonical=True)[0]
    np.testing.assert_array_equal(sample["image"][0], voxels)
    np.testing.assert_array_equal(sample["mask"][0], voxels > 100)
    np.testing.assert_allclose(BidsDataset(tree, canonical=True).affine(0), image.affine, atol=1e-4)


@pytest.mark.parametrize("extraction", [None, {"kind": "patch", "size": 8, "overlap": 2}, {"kind": "slice"}])
@pytest.mark.parametrize("transforms", [None, [{"name": "ScaleIntensity"}, {"name": "Flip", "spatial_axis": 0}]])
def test_caches_change_nothing(tree: Path, tmp_path: Path, extraction: Any, transforms: Any) -> None:
    settings: dict[str, Any] = {"masks": "Segmentation", "extraction": extraction, "transforms": transforms}
    plain = BidsDataset(tree, **settings)
    for kind in ("memory", "disk"):
        cached = BidsDataset(tree, cache=kind, cache_dir=tmp_path / "cache", **settings)  # type: ignore[arg-type]
        assert cached.sample_ids == plain.sample_ids
        for _ in range(2):
            for row in range(0, len(plain), max(1, len(plain) // 12)):
                one, other = plain[row], cached[row]
                assert one.keys() == other.keys()
                assert all(
                    torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
                    for key, value in one.items()
                )
        again = pickle.loads(pickle.dumps(cached))
        assert torch.equal(again[5]["image"], plain[5]["image"])


def test_a_changed_file_is_read_again(tree: Path, tmp_path: Path) -> None:
    first = BidsDataset(tree, cache="disk", cache_dir=tmp_path / "cache")
    before = first[0]["image"]
    save(image_of(tree, 0), np.full((SIZE, SIZE, SIZE), 3, np.int16))
    assert torch.equal(first[0]["image"], before)
    again = BidsDataset(tree, cache="disk", cache_dir=tmp_path / "cache")
    assert again[0]["image"].unique().tolist() == [3]
    assert torch.equal(again[1]["image"], first[1]["image"])


def test_parts_know_where_they_come_from(tree: Path) -> None:
    dataset = BidsDataset(tree, extraction={"kind": "patch", "size": 8, "overlap": 4})
    whole = BidsDataset(tree)[0]["image"]
    pieces = [dataset[row] for row in range(len(dataset)) if dataset.participants[row] == dataset.participants[0]]
    rebuilt = torch.full_like(whole, -1)
    for piece in pieces:
        if piece["image_id"] == dataset[0]["image_id"]:
            i, j, k = piece["position"].tolist()
            rebuilt[:, i : i + 8, j : j + 8, k : k + 8] = piece["image"]
    assert torch.equal(rebuilt, whole)
    assert pieces[0]["image_shape"].tolist() == [SIZE] * 3
    assert pieces[0]["sample_id"] == pieces[0]["image_id"] + "_patch-0000"


AUGMENTATIONS = [
    {"name": "RandFlip", "prob": 0.5, "spatial_axis": 0},
    {"name": "RandAffine", "prob": 1.0, "rotate_range": 0.3, "padding_mode": "zeros"},
    {"name": "RandGaussianNoise", "prob": 1.0},
]


def _batches(dataset: Any, workers: int, first: int = 0) -> list[torch.Tensor]:
    loader = Loader(dataset, 2, seed=3, shuffle=True, num_workers=workers)
    try:
        return [item.batch["image"] for item in loader.epoch(1, first)]
    finally:
        loader.close()


def test_augmentations_follow_the_place_in_the_run_alone(tree: Path) -> None:
    dataset = BidsDataset(tree, masks="Segmentation", augmentations=AUGMENTATIONS, cache="memory")
    assert not dataset.deterministic
    alone = _batches(dataset, 0)
    for other in (_batches(dataset, 2), _batches(dataset, 1)):
        assert all(map(torch.equal, alone, other))
    assert all(map(torch.equal, alone[3:], _batches(dataset, 2, first=3)))
    plain = dataset.evaluation()
    assert plain.deterministic and torch.equal(plain[0]["image"], BidsDataset(tree)[0]["image"])
    assert not torch.equal(alone[0][0], alone[1][0])


def test_what_was_given_is_kept_as_text_and_numbers(tree: Path) -> None:
    dataset = BidsDataset(
        tree,
        {"preset": "T1w", "with_entities": {}},
        data=pd.DataFrame({"participant_id": [path.name for path in tree.glob("sub-*")]}),
        label="diagnosis",
        masks="Segmentation",
        extraction={"kind": "slice", "borders": 5},
        transforms=["ScaleIntensity"],
    )
    names = list(inspect.signature(BidsDataset).parameters)
    again = BidsDataset(**json.loads(json.dumps({name: getattr(dataset, name) for name in names})))
    assert again.sample_ids == dataset.sample_ids and again.classes == dataset.classes
    assert torch.equal(again[7]["image"], dataset[7]["image"])


def _config(**data: Any) -> RunConfig:
    return RunConfig.model_validate({"data": data})


def test_a_run_finds_its_images(tree: Path, tmp_path: Path) -> None:
    options = BrainOptions(cache="none")
    for data in ({"images": tree}, {"table": tree}):
        cohort = open_cohort(options, _config(**data))
        assert len(cohort.whole) == 12 and cohort.about["images"] == 12  # type: ignore[arg-type]
    split = split_groups(Data(whole=cohort.whole), 0, 0.34, 0.0)
    assert {len(part) for part in split.groups.values()} == {8, 4}
    (tmp_path / "rows.tsv").write_text(f"participant_id\n{next(tree.glob('sub-*')).name}\n")
    assert len(open_cohort(options, _config(images=tree, table=tmp_path / "rows.tsv")).whole) == 2  # type: ignore[arg-type]
    for wrong, given, message in (
        (options, {"table": tmp_path / "rows.tsv"}, "data.images"),
        (options, {}, "no data given"),
        (BrainOptions(label=""), {"images": tree}, "label"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_cohort(wrong, _config(**given))


def test_splits_that_start_at_once_make_the_images_of_the_demo_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDTRAIN_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(synth, "synthesize", lambda *given, **more: made.append(synthesize(*given, **more)))
    with ThreadPoolExecutor(3) as pool:
        options = BrainOptions(demo_participants=4, demo_size=SIZE)
        cohorts = list(pool.map(lambda _: open_cohort(options, _config()), range(3)))
    assert len(made) == 1
    assert [cohort.about["participants"] for cohort in cohorts] == [4, 4, 4]


def test_samples_tell_the_size_of_their_voxels(tree: Path, tmp_path: Path) -> None:
    path = image_of(tree, 0)
    for part in (path, mask_of(tree, 0)):
        values = np.asarray(nibabel.load(part).dataobj)
        # Axes run to the front, up and to the right: 3, 4 and 2 mm.
        save(part, values, np.array([[0, 0, 2.0, 0], [3.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 0, 1]]))
    assert BidsDataset(tree)[0]["spacing"].tolist() == [3, 4, 2]
    assert BidsDataset(tree, canonical=True)[0]["spacing"].tolist() == [2, 3, 4]
    assert BidsDataset(tree, extraction={"kind": "slice", "direction": 1})[0]["spacing"].tolist() == [3, 2]
    assert BidsDataset(tree, extraction={"kind": "patch", "size": 8})[0]["spacing"].tolist() == [3, 4, 2]
    steps: Any = [{"name": "Spacing", "pixdim": [6, 2, 2]}, {"name": "ResizeWithPadOrCrop", "spatial_size": 6}]
    for cache in ("none", "memory", "disk"):
        dataset = BidsDataset(
            tree,
            masks="Segmentation",
            transforms=steps,
            cache=cache,  # type: ignore[arg-type]
            cache_dir=tmp_path / "cache",
        )
        for _ in range(2):
            assert dataset[0]["spacing"].tolist() == [6, 2, 2]
            assert dataset[0]["mask"].dtype == torch.int64
