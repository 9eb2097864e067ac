from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from medtrain.errors import UsageError
from medtrain_plugins.mammography.cohort import Cohort, read_cohort
from medtrain_plugins.mammography.exams import lmv_pairs
from medtrain_plugins.mammography.images import read_pixels
from medtrain_plugins.mammography.labels import survival_targets
from medtrain_plugins.mammography.layouts import EMBED_NAME
from medtrain_plugins.mammography.synth import MAX_YEARS, Settings, draw_women, synthesize
from scipy import ndimage, stats
from sklearn.metrics import roc_auc_score

SMALL = {"patients": 60, "seed": 5, "image_size": (64, 48)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "cohort"
    synthesize(out, **SMALL)
    return out


@pytest.fixture(scope="module")
def without_lesion(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "without"
    synthesize(out, **SMALL, lesion=False)
    return out


@pytest.fixture(scope="module")
def cohort(folder) -> Cohort:
    return read_cohort(folder)


@pytest.fixture(scope="module")
def masses(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "masses.tsv", sep="\t").set_index("file_name")


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = hashlib.sha256()
    for path in files:
        whole.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return whole.hexdigest()


def test_equal_seeds_give_equal_bytes(tmp_path):
    settings = {"patients": 6, "image_size": (32, 24)}
    digests = []
    for name, seed, workers in (("a", 1, 1), ("b", 1, 1), ("c", 1, 2), ("d", 2, 1)):
        synthesize(tmp_path / name, seed=seed, workers=workers, **settings)
        digests.append(digest(tmp_path / name))
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_it_reads_as_embed_without_a_problem(folder, cohort):
    assert cohort.layout == "embed" and cohort.about["dropped"] == {} and cohort.about["not_understood"] == {}
    assert cohort.about["patients"] == 60 and cohort.about["patients_with_cancer"] == 27
    sizes = {name: cohort.about["groups"][name]["patients"] for name in cohort.groups}
    cases = {name: cohort.about["groups"][name]["patients_with_cancer"] for name in cohort.groups}
    assert sizes == {"train": 30, "validation": 12, "test": 18}
    assert cases["train"] in (13, 14) and cases["validation"] in (5, 6) and cases["test"] in (8, 9)
    for path in folder.glob("*/*.png"):
        assert EMBED_NAME.fullmatch(path.name)
    assert sorted(path.name for path in folder.iterdir()) == [
        "cohort.csv",
        "masses.tsv",
        "synthesis.json",
        "test",
        "train",
        "val",
    ]


def test_two_to_four_complete_exams_about_a_year_apart(cohort):
    exams = cohort.table.groupby("patient_id")["exam_id"].nunique()
    assert exams.between(2, 4).all() and exams.nunique() == 3
    assert (cohort.table.groupby("exam_id").size() == 4).all()
    pairs = lmv_pairs(cohort)
    assert len(pairs) == 2 * (exams - 1).sum()
    assert pairs["time_gap"].between(0.69, 2.01).all() and pairs["time_gap"].mean() == pytest.approx(1.1, abs=0.1)


def test_labels_are_those_of_a_breast(cohort, masses):
    table = cohort.table
    ill = table["years_to_cancer"].notna()
    sides = table[ill].groupby("patient_id")["laterality"].unique()
    assert (sides.str.len() == 1).all() and set(sides.str[0]) == {"L", "R"}
    other = table[~ill & table["patient_id"].isin(sides.index)]
    assert len(other) == ill.sum()
    # Both breasts of a woman are followed equally long: to the diagnosis.
    by_exam = table.groupby("exam_id")["years_to_followup"].nunique()
    assert (by_exam == 1).all()
    assert (table.loc[ill, "years_to_cancer"] == table.loc[ill, "years_to_followup"]).all()
    assert table.loc[ill, "cancer_type"].isin([0, 1]).all() and (table.loc[~ill, "cancer_type"] == -1).all()
    assert set(masses.index) == set(table.loc[ill, "file_name"])
    last = table[ill].sort_values("exam_date").groupby("patient_id")["years_to_cancer"].last()
    assert last.between(0, MAX_YEARS).all() and last.nunique() >= 4


def test_masses_grow_towards_the_diagnosis_and_lie_alike_in_both_views(masses):
    parts = masses.index.str.split("_")
    frame = masses.assign(patient=parts.str[0], view=parts.str[2], day=parts.str[3])
    for _, exams in frame.sort_values("day").groupby(["patient", "view"]):
        growth = np.log(exams["radius"].to_numpy()[1:] / exams["radius"].to_numpy()[:-1])
        years = -np.diff(exams["years_to_diagnosis"])
        assert (years > 0).all()
        np.testing.assert_allclose(growth, 0.18 * years, atol=0.01)
        assert exams[["row", "column"]].nunique().eq(1).all()
    from_chest = frame["column"].where(parts.str[1] == "L", 48 - frame["column"])
    depth = from_chest.groupby([frame["patient"], frame["view"]]).first().unstack()
    assert depth["CC"].corr(depth["MLO"]) > 0.8 and ((depth["CC"] - depth["MLO"]).abs() < 48 / 4).all()
    near = frame[frame["years_to_diagnosis"] < 3]["radius"]
    assert 2 * near.min() >= 4  # pixels across, of an image 64 pixels high


def test_a_mass_is_brighter_than_what_is_around_it(folder, masses, cohort):
    paths = cohort.table.set_index("file_name")["image_path"]
    contrast = []
    for name, mass in masses[masses["years_to_diagnosis"] < 3].iterrows():
        pixels = read_pixels(paths[name]) / 65535
        rows, columns = np.indices(pixels.shape)
        # The breast is positioned anew at each exam: the mass is near where the truth says.
        near = np.hypot(rows + 0.5 - mass["row"], columns + 0.5 - mass["column"]) < mass["radius"] + 3
        smooth = ndimage.uniform_filter(pixels, 3)
        contrast.append(smooth[near].max() - np.percentile(smooth[~near & (smooth > 0.05)], 90))
    assert np.mean(contrast) > 0.2 and np.quantile(contrast, 0.05) > 0.05


def test_no_lesion_leaves_only_the_masses_out(folder, without_lesion, masses):
    assert (folder / "cohort.csv").read_bytes() == (without_lesion / "cohort.csv").read_bytes()
    assert len((without_lesion / "masses.tsv").read_text().splitlines()) == 1
    for path in folder.glob("*/*.png"):
        one, other = read_pixels(path), read_pixels(without_lesion / path.parent.name / path.name)
        changed = one != other
        if path.name not in masses.index:
            assert not changed.any()
            continue
        mass = masses.loc[path.name]
        rows, columns = np.nonzero(changed)
        distance = np.hypot(rows + 0.5 - mass["row"], columns + 0.5 - mass["column"])
        assert changed.any() and distance.max() < 4 * mass["radius"] + 8


def statistics(path: str) -> list[float]:
    """What a naive reader might see in a whole image."""
    pixels = read_pixels(path) / 65535
    tissue = pixels[pixels > 0.05]
    bright = ndimage.gaussian_filter(pixels, 2).max()
    return [tissue.mean(), tissue.std(), np.percentile(tissue, 99), pixels.max(), len(tissue) / pixels.size, bright]


def by_woman(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean statistics of the images of each woman, and whether she is a case."""
    table = read_cohort(folder).table
    values = pd.DataFrame([statistics(path) for path in table["image_path"]]).groupby(table["patient_id"]).mean()
    case = table.groupby("patient_id")["years_to_cancer"].min().notna()
    return values.to_numpy(), case.loc[values.index].to_numpy()


def test_without_masses_images_do_not_tell_cases_from_controls(folder, without_lesion):
    values, case = by_woman(without_lesion)
    p_values = [stats.mannwhitneyu(column[case], column[~case]).pvalue for column in values.T]
    assert min(p_values) > 0.05 / len(p_values)
    seen, _ = by_woman(folder)
    assert stats.mannwhitneyu(seen[case, -1], seen[~case, -1]).pvalue < 1e-4  # the same statistics see the masses


def test_nothing_else_tells_cases_from_controls():
    women = list(draw_women(Settings(patients=2000, seed=3)))
    case = np.array([woman.case for woman in women])
    assert case.sum() == 900
    facts = {
        "number": [int(woman.patient_id) for woman in women],
        "exams": [len(woman.exams) for woman in women],
        "first": [woman.exams[0].toordinal() for woman in women],
        "gap": [(woman.exams[1] - woman.exams[0]).days for woman in women],
        "followup": [(woman.last - woman.exams[-1]).days for woman in women],
        "density": [woman.density for woman in women],
        "race": [len(woman.race) for woman in women],
        "side": [woman.side for woman in women],
        "depth": [woman.shape.depth for woman in women],
        "radius": [woman.mass.radius for woman in women],
    }
    for name, values in facts.items():
        ranks = np.unique(values, return_inverse=True)[1]
        assert abs(roc_auc_score(case, ranks) - 0.5) < 0.05, name
    # Negative control: a follow-up that knew of the disease would be seen.
    assert abs(roc_auc_score(case, np.array(facts["followup"]) - 200 * case) - 0.5) > 0.05


def test_an_oracle_of_the_mass_predicts_the_risk(cohort, masses):
    pairs = lmv_pairs(cohort)
    labels = survival_targets(pairs["years_to_cancer"].to_numpy(), pairs["years_to_followup"].to_numpy())
    size = np.array([masses["radius"].get(Path(path).name, 0.0) for path in pairs["current_mlo"]])

    def c_index(score: np.ndarray) -> float:
        time, event = labels.event_time, labels.event_observed == 1
        earlier = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))
        return float(np.where(score[:, None] == score, 0.5, score[:, None] > score)[earlier].mean())

    assert c_index(size) > 0.85
    assert abs(c_index(pairs["density"].to_numpy()) - 0.5) < 0.12


def test_exams_of_a_woman_look_alike_and_are_not_equal(folder, cohort):
    def similarity(first: str, second: str) -> float:
        smooth = [ndimage.gaussian_filter(read_pixels(path).astype(float), 1.5) for path in (first, second)]
        inside = (smooth[0] > 2000) & (smooth[1] > 2000)
        return float(np.corrcoef(smooth[0][inside], smooth[1][inside])[0, 1])

    pairs = lmv_pairs(cohort)
    pairs = pairs[pairs["years_to_cancer"].isna() & (pairs["laterality"] == "L")].drop_duplicates("patient_id")
    own = [similarity(*pair) for pair in zip(pairs["current_cc"], pairs["previous_cc"], strict=True)]
    strangers = [
        similarity(*pair) for pair in zip(pairs["current_cc"], pairs["previous_cc"].shift(-1)[:-1], strict=False)
    ]
    assert np.mean(own) > 0.75 and np.mean(own) > np.mean(strangers) + 0.2
    assert max(own) < 0.999


def test_density_and_sides_look_as_they_should(cohort):
    table = cohort.table[cohort.table["years_to_cancer"].isna() & (cohort.table["view"] == "CC")]
    images = [read_pixels(path) / 65535 for path in table["image_path"]]
    brightness = [image[image > 0.05].mean() for image in images]
    assert stats.spearmanr(table["density"], brightness).statistic > 0.6
    for image, side in zip(images, table["laterality"], strict=True):
        left, right = image[:, :12].sum(), image[:, -12:].sum()
        assert (left > right) == (side == "L")
        assert (image == 0).mean() > 0.2  # air is black


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patients": 2}, "--patients 2"),
        ({"seed": -1}, "--seed -1"),
        ({"case_fraction": 1.2}, "--case-fraction 1.2"),
        ({"image_size": (16, 96)}, "--height 16"),
    ],
)
def test_impossible_settings(tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        synthesize(tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_three_women_fill_three_groups(tmp_path):
    synthesize(tmp_path / "out", 3, image_size=(32, 24), workers=1)
    assert read_cohort(tmp_path / "out").groups == ["train", "validation", "test"]
