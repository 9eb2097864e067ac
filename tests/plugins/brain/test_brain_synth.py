"""Synthetic trees: what they hold, what tells of the diagnosis, and the commands on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from medtrain.errors import DataError, UsageError
from medtrain_plugins.brain.commands import data as commands
from medtrain_plugins.brain.data.dataset import BidsDataset
from medtrain_plugins.brain.synth import draw_participants, synthesize

SIZE = 16


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "tree"
    synthesize(folder, 12, sessions=3, size=SIZE)
    return folder


def test_a_tree_holds_what_its_tables_say(tree: Path) -> None:
    dataset = BidsDataset(
        tree, label="diagnosis", columns=["age", "sex", "site"], masks="Segmentation", exclude="strict"
    )
    assert dataset.about["participants"] == 12 and len(dataset) == 36
    assert dataset.sessions[:3] == ["ses-M000", "ses-M006", "ses-M012"]
    assert dataset.about["images_by_class"] == {"AD": 18, "CN": 18}
    sample = dataset[1]
    assert sample["image"].shape == sample["mask"].shape == (1, SIZE, SIZE, SIZE)
    assert set(np.unique(sample["mask"])) == {0, 1, 2, 3}
    assert dataset[1]["age"] - dataset[0]["age"] == pytest.approx(0.5, abs=0.11)
    spacings = {
        tuple(np.round(nibabel.load(path).header.get_zooms(), 3)) for path in tree.glob("sub-*/ses-M000/anat/*T1w*")
    }
    assert len(spacings) == 3


def test_equal_settings_give_equal_files(tree: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "again", 12, sessions=3, size=SIZE)
    synthesize(tmp_path / "other", 12, sessions=3, size=SIZE, seed=1)
    files = sorted(path.relative_to(tree) for path in tree.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    assert all((tree / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
    image = next(file for file in files if file.name.endswith("T1w.nii.gz"))
    assert (tree / image).read_bytes() != (tmp_path / "other" / image).read_bytes()


def _fluid(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of fluid and of gray matter in every image, and its class."""
    dataset = BidsDataset(folder, label="diagnosis", masks="Segmentation", class_names=["CN", "AD"])
    masks = np.stack([dataset[row]["mask"].numpy() for row in range(len(dataset))])
    return np.stack([(masks == tissue).sum(axis=(1, 2, 3, 4)) for tissue in (1, 2)]), np.array(dataset.classes)


def test_atrophy_tells_the_diagnosis_and_without_a_signal_nothing_does(tree: Path, tmp_path: Path) -> None:
    (fluid, gray), ill = _fluid(tree)
    assert fluid[ill == 1].min() > fluid[ill == 0].max()
    assert gray[ill == 1].mean() < gray[ill == 0].mean()
    synthesize(tmp_path / "none", 12, sessions=3, size=SIZE, signal="none")
    (nothing, _), again = _fluid(tmp_path / "none")
    np.testing.assert_array_equal(ill, again)
    assert nothing[ill == 1].min() < nothing[ill == 0].max()
    np.testing.assert_array_equal(nothing[ill == 0], fluid[ill == 0])


@pytest.mark.parametrize("variant", ["trivial", "shepp_logan"])
def test_other_variants_differ_by_diagnosis_alone(tmp_path: Path, variant: Any) -> None:
    synthesize(tmp_path / "signal", 6, sessions=1, sites=1, size=SIZE, variant=variant)
    synthesize(tmp_path / "none", 6, sessions=1, sites=1, size=SIZE, variant=variant, signal="none")
    signal, none = (BidsDataset(tmp_path / name, label="diagnosis") for name in ("signal", "none"))
    for row in range(6):
        same = bool((signal[row]["image"] == none[row]["image"]).all())
        assert same == (signal.class_names[signal.classes[row]] == "CN")  # type: ignore[index]


def test_the_diagnosis_is_independent_of_the_rest() -> None:
    people = draw_participants(600, 3, 0)
    ill = np.array([person.ill for person in people])
    assert ill.mean() == 0.5
    for site in range(3):
        assert ill[[person.site == site for person in people]].mean() == 0.5
    ages = np.array([person.age for person in people])
    assert abs(ages[ill].mean() - ages[~ill].mean()) < 2
    women = np.array([person.sex == "F" for person in people])
    assert abs(women[ill].mean() - women[~ill].mean()) < 0.12


def test_only_synthetic_trees_are_replaced(tmp_path: Path) -> None:
    synthesize(tmp_path / "tree", 4, sessions=1, size=12)
    assert synthesize(tmp_path / "tree", 2, sessions=1, size=12)["images"] == 2
    assert len(list((tmp_path / "tree").glob("sub-*"))) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        synthesize(tmp_path / "mine", 4)
    with pytest.raises(UsageError, match="--size 4"):
        synthesize(tmp_path / "small", 4, size=4)
    assert {path.name for path in tmp_path.iterdir()} == {"tree", "mine"}


def _run(command: Any, *arguments: object) -> Any:
    return CliRunner().invoke(command, list(map(str, arguments)), standalone_mode=False)


def test_the_commands(tmp_path: Path) -> None:
    made = _run(commands.synth, "--out", tmp_path / "t", "--participants", 4, "--size", 12, "--sites", 1)
    assert "8 images of 4 participants, 2 of them ill" in made.output
    steps = tmp_path / "run.toml"
    steps.write_text('[plugins.brain]\ntransforms = [{name = "ScaleIntensity"}]\n')
    arguments = ["--data", tmp_path / "t", "--masks", "Segmentation"]
    prepared = _run(commands.prepare, *arguments, "--out", tmp_path / "c", "--transforms", steps)
    assert "8 images" in prepared.output, prepared.exception
    index = (tmp_path / "c/index.json").stat().st_mtime_ns
    dataset = BidsDataset(
        tmp_path / "t", masks="Segmentation", transforms=["ScaleIntensity"], cache="disk", cache_dir=tmp_path / "c"
    )
    assert (tmp_path / "c/index.json").stat().st_mtime_ns == index
    assert dataset[0]["image"].max() == 1 and dataset[0]["image"].min() == 0

    good = _run(commands.check, *arguments, "--label", "diagnosis")
    assert good.return_value == 0 and "8 images can be used, 0 problems" in good.output
    victim = next((tmp_path / "t").glob("sub-*/ses-M000/anat/*.nii.gz"))
    victim.write_bytes(victim.read_bytes()[:-50])
    bad = _run(commands.check, *arguments, "--json")
    told = json.loads(bad.stdout)
    assert bad.return_value == 3 and told["images"] == 7
    assert len(told["problems"]) == 1 and victim.name in told["problems"][0]
    refused = _run(commands.prepare, *arguments, "--out", tmp_path / "d")
    assert isinstance(refused.exception, DataError)
    assert "7 images" in _run(commands.prepare, *arguments, "--out", tmp_path / "d", "--skip-bad").output
