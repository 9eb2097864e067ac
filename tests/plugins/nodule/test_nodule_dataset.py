"""Samples of prepared scans, as the training loader asks for them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from medtrain.data import Loader
from medtrain.errors import DataError
from medtrain_plugins.nodule.data.dataset import OPEN_SCANS, NodulePatches, NoduleScans
from medtrain_plugins.nodule.data.patches import cut
from medtrain_plugins.nodule.data.sampling import Sampling
from medtrain_plugins.nodule.options import AugmentationOptions
from medtrain_plugins.nodule.scans.intensity import Intensity
from medtrain_plugins.nodule.scans.manifest import ManifestRow, read_manifest
from medtrain_plugins.nodule.scans.resampling import AIR
from medtrain_plugins.nodule.synthetic.synth import demo_manifest
from spec_functions import GridPatches

SIZE = (32, 32, 32)
INTENSITY = Intensity()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[ManifestRow]:
    folder = tmp_path_factory.mktemp("demo")
    return read_manifest(demo_manifest(folder, 4, 3, shape=(48, 64, 64), spacing=(2.5, 2.5, 2.5)))


def known(values: torch.Tensor) -> torch.Tensor:
    return values[values.flatten(1).isfinite().all(dim=1)] if values.dim() > 1 else values[values.isfinite()]


def test_a_sample_is_the_window_of_the_scan_with_its_nodules(rows: list[ManifestRow]) -> None:
    patches = NodulePatches(
        rows, INTENSITY, Sampling(SIZE, positive_fraction=1.0), patches_per_volume=3, with_mask=True
    )
    assert len(patches) == 12
    assert patches.sample_ids[4] == f"{rows[1].series}#1"
    assert patches.participants[4] == rows[1].patient
    for index in range(12):
        torch.manual_seed(index)
        sample, row = patches[index], rows[index // 3]
        start = sample["start"].numpy()
        assert sample["image"].shape == (1, *SIZE) and sample["image"].dtype == torch.float32
        np.testing.assert_array_equal(sample["image"][0].numpy(), INTENSITY(cut(row.open(), start, SIZE, AIR)))
        assert sample["is_positive"]
        voxels = np.array([nodule.voxel for nodule in row.nodules])
        diameters = [nodule.diameter_mm for nodule in row.nodules]
        centres = known(sample["centers"]).numpy()
        assert len(centres) >= 1
        for centre, diameter, triage in zip(centres, sample["diameters"], sample["triage"], strict=False):
            nearest = np.linalg.norm(voxels - (centre + start), axis=1)
            assert nearest.min() < 1e-4
            nodule = row.nodules[int(nearest.argmin())]
            assert diameter == pytest.approx(diameters[int(nearest.argmin())])
            assert nodule.score is not None and triage == pytest.approx((nodule.score - 1) / 9)
            at = np.rint(centre).astype(int)
            if ((at >= 0) & (at < 32)).all():
                assert sample["mask"][0][tuple(at)] == 1
                assert sample["image"][0][tuple(at)] > 0.2, "nodules are denser than lung"


def test_batches_stack_whatever_patches_hold_and_epochs_differ_by_seed_and_epoch_alone(rows: list[ManifestRow]) -> None:
    def epoch(number: int, workers: int = 0) -> list[torch.Tensor]:
        patches = NodulePatches(
            rows, INTENSITY, Sampling((16, 16, 16)), patches_per_volume=2, augmentation=AugmentationOptions()
        )
        loader = Loader(patches, 4, seed=7, shuffle=True, num_workers=workers)
        images = [item.batch["image"] for item in loader.epoch(number)]
        loader.close()
        return images

    first, again, second = epoch(0), epoch(0), epoch(1)
    assert first[0].shape == (4, 1, 16, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(0, workers=1), strict=True))


def test_fixed_patches_stay_the_same_and_are_not_augmented(rows: list[ManifestRow]) -> None:
    fixed = NodulePatches(rows, INTENSITY, Sampling(SIZE), augmentation=AugmentationOptions(), seed=5)
    assert fixed.deterministic and fixed.augmentation is None
    assert torch.equal(fixed[3]["image"], fixed[3]["image"])
    assert not torch.equal(fixed[3]["start"], fixed[4]["start"])
    assert not NodulePatches(rows, INTENSITY, Sampling(SIZE)).deterministic


def test_the_positive_fraction_holds_in_augmented_samples(rows: list[ManifestRow]) -> None:
    rows = [rows[0], rows[1], rows[2], rows[3].model_copy(update={"nodules": ()})]
    patches = NodulePatches(
        rows,
        INTENSITY,
        Sampling((16, 16, 16), positive_fraction=0.5),
        patches_per_volume=60,
        augmentation=AugmentationOptions(),
    )
    torch.manual_seed(0)
    share = np.mean([bool(patches[index]["is_positive"]) for index in range(len(patches))])
    assert patches.expected_fraction == pytest.approx(0.5)
    assert share == pytest.approx(0.5, abs=0.08)


def test_augmented_centres_are_where_the_nodules_are_and_diameters_scale(rows: list[ManifestRow]) -> None:
    always = {"probability": 1.0}
    options = AugmentationOptions.model_validate(
        {
            "random_rotation": always,
            "random_scale": {**always, "scale_range": [1.2, 1.2]},
            "elastic_deformation": always,
            "random_noise": {"probability": 0},
        }
    )
    patches = NodulePatches(
        rows,
        INTENSITY,
        Sampling(SIZE, positive_fraction=1.0),
        patches_per_volume=4,
        augmentation=options,
        with_mask=True,
    )
    torch.manual_seed(1)
    for index in range(len(patches)):
        sample = patches[index]
        assert sample["is_positive"]
        diameters = np.array([nodule.diameter_mm for nodule in rows[index // 4].nodules])
        for centre, diameter in zip(known(sample["centers"]).numpy(), sample["diameters"], strict=False):
            assert np.abs(diameters * 1.2 - float(diameter)).min() < 1e-3
            at = np.rint(centre).astype(int)
            if ((at >= 1) & (at < 31)).all() and diameter > 6:
                assert sample["mask"][0][tuple(at)] == 1


def test_a_stage_ignores_nodules_of_other_sizes_and_irrelevant_findings(rows: list[ManifestRow]) -> None:
    limit = float(np.median([nodule.diameter_mm for row in rows for nodule in row.nodules]))
    sampling = Sampling((48, 64, 64), min_diameter=limit)
    sample = NodulePatches(rows, INTENSITY, sampling, patches_per_volume=1, with_mask=True)[0]
    assert (known(sample["diameters"]) >= limit - 1e-3).all()
    others = [n for n in rows[0].nodules if (n.diameter_mm or 0) < limit] + list(rows[0].irrelevant)
    assert len(known(sample["ignored_centers"])) == len(others) >= 1
    for nodule in others:
        at = tuple(np.rint(np.array(nodule.voxel) - sample["start"].numpy()).astype(int))
        assert sample["ignore"][0][at]
        if nodule.label:
            assert sample["mask"][0][at].isnan()
    for centre in known(sample["centers"]):
        assert not sample["ignore"][0][tuple(centre.round().int())]
    everything = NodulePatches(rows, INTENSITY, Sampling((48, 64, 64)), patches_per_volume=1)[0]
    assert len(known(everything["ignored_centers"])) == len(rows[0].irrelevant)


def test_scans_without_masks_have_unknown_ones(rows: list[ManifestRow]) -> None:
    bare = [rows[0].model_copy(update={"mask": None})]
    assert NodulePatches(bare, INTENSITY, Sampling(SIZE), with_mask=True)[0]["mask"].isnan().all()
    assert "mask" not in NodulePatches(rows, INTENSITY, Sampling(SIZE))[0]


def test_grid_patches_put_together_are_the_scan(rows: list[ManifestRow]) -> None:
    grid = GridPatches(rows[:1], INTENSITY, Sampling(SIZE), (20, 32, 32))
    assert grid.deterministic and len(set(grid.sample_ids)) == len(grid) == 2 * 2 * 2
    whole = NoduleScans(rows[:1], INTENSITY)[0]["image"]
    seen = torch.full_like(whole, torch.nan)
    for index in range(len(grid)):
        sample = grid[index]
        z, y, x = sample["start"].tolist()
        seen[:, z : z + 32, y : y + 32, x : x + 32] = sample["image"]
    assert torch.equal(seen, whole)
    fewer = GridPatches(rows[:1], INTENSITY, Sampling(SIZE), (32, 32, 32))
    assert len(GridPatches(rows[:1], INTENSITY, Sampling(SIZE), (8, 16, 16))) > len(fewer)


def test_whole_scans_come_with_all_their_nodules(rows: list[ManifestRow]) -> None:
    scans = NoduleScans(rows, INTENSITY, with_mask=True)
    assert scans.sample_ids == [row.series for row in rows]
    for index, row in enumerate(rows):
        sample = scans[index]
        assert sample["image"].shape == (1, *row.shape) == sample["mask"].shape
        np.testing.assert_allclose(known(sample["centers"]), [nodule.voxel for nodule in row.nodules], atol=1e-4)
    assert sum(len(item.batch["sample_id"]) for item in Loader(scans, 1).epoch()) == 4


def test_patches_of_a_large_scan_read_only_what_they_show(tmp_path: Path, rows: list[ManifestRow]) -> None:
    """A file of 4 GB with almost nothing in it: reading it whole would take far more memory than there is room for."""
    import resource

    path, shape = tmp_path / "large.npy", (2000, 1000, 1000)
    np.lib.format.open_memmap(path, mode="w+", dtype=np.int16, shape=shape).flush()
    row = rows[0].model_copy(
        update={"image": str(path), "shape": shape, "nodules": (), "irrelevant": (), "lung_box": None}
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    patches = NodulePatches([row], INTENSITY, Sampling((16, 16, 16)))
    for index in range(5):
        assert (patches[index]["image"] == INTENSITY(0)).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_datasets_travel_to_loader_processes_without_their_open_files(rows: list[ManifestRow]) -> None:
    patches = NodulePatches(rows, INTENSITY, Sampling(SIZE), seed=1)
    image = patches[0]["image"]
    assert len(pickle.dumps(patches)) < 50_000
    assert torch.equal(pickle.loads(pickle.dumps(patches))[0]["image"], image)
    assert OPEN_SCANS < 100


def test_files_that_changed_and_empty_groups_are_errors(rows: list[ManifestRow], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scans"):
        NodulePatches([], INTENSITY, Sampling(SIZE))
    np.save(tmp_path / "other.npy", np.zeros((3, 4, 5), dtype=np.int16))
    row = rows[0].model_copy(update={"image": str(tmp_path / "other.npy")})
    with pytest.raises(DataError, match=r"other\.npy"):
        NodulePatches([row], INTENSITY, Sampling(SIZE))[0]
