from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from medtrain.errors import UsageError
from medtrain_plugins.mammography.cohort.cohort import Cohort, read_cohort
from medtrain_plugins.mammography.cohort.exams import lmv_pairs
from medtrain_plugins.mammography.cohort.images import read_pixels
from medtrain_plugins.mammography.cohort.labels import survival_targets
from medtrain_plugins.mammography.cohort.layouts import EMBED_NAME
from medtrain_plugins.mammography.synthetic.synth import MAX_YEARS, SyntheticCohort, Woman, draw_women, synthesize
from scipy import ndimage, stats
from sklearn.metrics import roc_auc_score

SMALL = {"patients": 60, "seed": 5, "image_size": (64, 48)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "cohort"
    synthesize(out, **SMALL)
    return out


@pytest.fixture(scope="module")
def without_masses(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "without"
    synthesize(out, **SMALL, signal="none")
    return out


@pytest.fixture(scope="module")
def changing(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "changing"
    synthesize(out, **SMALL, signal="change")
    return out


@pytest.fixture(scope="module")
def cohort(folder) -> Cohort:
    return read_cohort(folder)


@pytest.fixture(scope="module")
def masses(folder) -> pd.DataFrame:
    return read_masses(folder)


def read_masses(folder: Path) -> pd.DataFrame:
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


def test_no_signal_leaves_only_the_masses_out(folder, without_masses, masses):
    assert (folder / "cohort.csv").read_bytes() == (without_masses / "cohort.csv").read_bytes()
    assert len((without_masses / "masses.tsv").read_text().splitlines()) == 1
    for path in folder.glob("*/*.png"):
        one, other = read_pixels(path), read_pixels(without_masses / path.parent.name / path.name)
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


def test_without_masses_images_do_not_tell_cases_from_controls(folder, without_masses):
    values, case = by_woman(without_masses)
    p_values = [stats.mannwhitneyu(column[case], column[~case]).pvalue for column in values.T]
    assert min(p_values) > 0.05 / len(p_values)
    seen, _ = by_woman(folder)
    assert stats.mannwhitneyu(seen[case, -1], seen[~case, -1]).pvalue < 1e-4  # the same statistics see the masses


def test_nothing_else_tells_cases_from_controls():
    women = list(draw_women(SyntheticCohort(patients=2000, seed=3)))
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


# Figures in the documentation are of cohorts with this signal: six women of seed 1, as they have always been.
GROWTH: dict[str, Any] = {
    "cohort.csv": "3fa1116e51f2cc2f15cc2abc4d3d6f17d4944a8a0b1771aafc81108b66e7bfbf",
    "masses.tsv": "3244515cf8b60176b9c58e8b64e0bb6409fd99f9e8df51c8820b1a848782d44a",
    "names": "f86798e8270255e3ac592e69fc38720ace2c4722e99e04661710a61475b7c4e8",
    "means": {
        "44634432_R_CC_2011-11-03_1689.png": 6667.4,
        "44634432_R_MLO_2011-11-03_5159.png": 9908.6,
        "48155338_R_CC_2013-10-30_6174.png": 10629.6,
        "83131986_L_CC_2014-07-06_2225.png": 8240.1,
        "83131986_L_MLO_2014-07-06_2613.png": 12344.7,
        "18717390_L_CC_2011-12-09_1922.png": 8859.6,
        "18717390_R_CC_2012-10-12_8103.png": 8416.9,
        "38818021_L_CC_2015-11-02_4746.png": 8046.0,
        "38818021_R_MLO_2015-11-02_5539.png": 11509.4,
        "48155338_L_CC_2013-10-30_8339.png": 10482.1,
        "80704658_L_MLO_2015-02-23_6044.png": 11155.5,
        "83131986_R_CC_2016-07-16_2760.png": 8119.5,
    },
}


def test_growth_stays_what_it_was(tmp_path):
    synthesize(tmp_path / "out", 6, 1, image_size=(32, 24), workers=1)
    for name in ("cohort.csv", "masses.tsv"):
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == GROWTH[name]
    # Brightness in levels of 65535: the last bit of a pixel is the processor's, anything drawn otherwise moves it more.
    found = {path.name: read_pixels(path).mean() for path in tmp_path.glob("out/*/*.png")}
    assert hashlib.sha256(" ".join(sorted(found)).encode()).hexdigest() == GROWTH["names"]
    for name, mean in GROWTH["means"].items():
        assert found[name] == pytest.approx(mean, abs=0.5)


def states(women: list[Woman], ill: bool) -> list[list[bool]]:
    """By breast that falls ill, or that is the same breast of a woman who does not: whether it has a mass, by exam."""
    return [
        [woman.mass_at(exam, woman.side, "change") is not None for exam in range(len(woman.exams))]
        for woman in women
        if woman.case == ill
    ]


def test_a_change_tells_all_and_a_single_exam_nothing():
    women = [woman for seed in range(4) for woman in draw_women(SyntheticCohort(patients=1500, seed=seed))]
    case, control = states(women, ill=True), states(women, ill=False)
    assert len(case) == 2700 and len(control) == 3300
    # All: the breast that falls ill changes at every exam, every other breast at none.
    assert all(one != other for exams in case for one, other in pairwise(exams))
    assert all(one == other for exams in control for one, other in pairwise(exams))
    for woman in women:
        other = "R" if woman.side == "L" else "L"
        exams = {woman.mass_at(exam, other, "change") is not None for exam in range(len(woman.exams))}
        assert len(exams) == 1
    # Nothing: at each exam, both breasts together are in each of four states with equal odds, whoever falls ill.
    for number in range(4):
        counts = np.zeros((2, 4), dtype=int)
        for woman in women:
            if number < len(woman.exams):
                has = [
                    woman.mass_at(number, side, "change") is not None
                    for side in (woman.side, *{"L", "R"} - {woman.side})
                ]
                counts[int(woman.case), 2 * has[0] + has[1]] += 1
        assert counts.sum(axis=1).min() > 700
        share = counts / counts.sum(axis=1, keepdims=True)
        error = np.sqrt(0.25 * 0.75 / counts.sum(axis=1, keepdims=True))
        assert (np.abs(share - 0.25) < 4 * error).all()
        assert stats.chi2_contingency(counts).pvalue > 1e-3
    # How large and bright a mass is does not depend on the disease either, nor on the time to it.
    for of in (lambda mass: mass.radius, lambda mass: mass.contrast, lambda mass: mass.depth):
        values = [[of(woman.masses[woman.side]) for woman in women if woman.case == ill] for ill in (True, False)]
        assert stats.mannwhitneyu(*values).pvalue > 1e-3
    assert {found[1] for woman in women for exam in range(2) if (found := woman.mass_at(exam, "L", "change"))} == {0.0}


def test_a_changing_cohort_differs_in_its_masses_only(changing, without_masses):
    assert (changing / "cohort.csv").read_bytes() == (without_masses / "cohort.csv").read_bytes()
    masses = read_masses(changing)
    table = read_cohort(changing).table.set_index("file_name")
    for name, row in table.iterrows():
        path = Path(row["image_path"])
        changed = read_pixels(path) != read_pixels(without_masses / path.parent.name / path.name)
        assert changed.any() == (name in masses.index)
    ill = table.index[table["years_to_cancer"].notna()]
    assert masses["years_to_diagnosis"].notna().equals(pd.Series(masses.index.isin(ill), masses.index))


def test_the_truth_of_a_changing_cohort_tells_by_change_alone(changing):
    masses = read_masses(changing)
    pairs = lmv_pairs(read_cohort(changing))
    ill = pairs["years_to_cancer"].notna()

    def has(column: str) -> pd.Series:
        return pairs[column].map(lambda path: Path(path).name in masses.index)

    for exam in ("current", "previous"):
        assert (has(f"{exam}_cc") == has(f"{exam}_mlo")).all()
    assert ((has("current_cc") != has("previous_cc")) == ill).all()
    assert 0.3 < has("current_cc").mean() < 0.7


def test_a_mass_that_comes_or_goes_is_seen(changing, without_masses):
    """A naive reader, who compares smoothed brightness, tells images with a mass from the same without."""
    masses = read_masses(changing)
    change = []
    for path in changing.glob("*/*.png"):
        if path.name in masses.index:
            own, bare = (read_pixels(folder / path.parent.name / path.name) for folder in (changing, without_masses))
            change.append(ndimage.gaussian_filter((own - bare.astype(float)) / 65535, 2).max())
    assert len(change) > 100 and np.quantile(change, 0.05) > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patients": 2}, "--patients 2"),
        ({"seed": -1}, "--seed -1"),
        ({"case_fraction": 1.2}, "--case-fraction 1.2"),
        ({"image_size": (16, 96)}, "--height 16"),
        ({"signal": "lesion"}, "--signal lesion: must be one of growth, change, none"),
    ],
)
def test_impossible_settings(tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        synthesize(tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_three_women_fill_three_groups(tmp_path):
    synthesize(tmp_path / "out", 3, image_size=(32, 24), workers=1)
    assert read_cohort(tmp_path / "out").groups == ["train", "validation", "test"]
