"""Folders of splits: what is written, what is read back, and what is refused before anything is there."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import medtrain
import numpy as np
import pandas as pd
import pytest
from medtrain import KFold, SingleSplit, make_kfold, make_split
from medtrain.data import Data, split_groups
from medtrain.errors import DataError, UsageError
from medtrain_plugins.standard.splits.split_tables import Table, session_key
from medtrain_plugins.standard.splits.splitters import open_splits
from scipy.stats import ttest_ind


def cohort(people: int = 40, seed: int = 0) -> pd.DataFrame:
    """One to three visits each, numbered without zeros; age grows from visit to visit."""
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(people):
        sex, site, age = generator.choice(["F", "M"]), generator.choice(["A", "B", "C"]), generator.normal(70, 8)
        visits = range(generator.integers(1, 4))
        rows += [(f"sub-{i:03d}", f"ses-M{6 * v + 6}", round(age + v / 2, 1), sex, site) for v in visits]
    return pd.DataFrame(rows, columns=["participant_id", "session_id", "age", "sex", "site"])


class Visits:
    """A dataset of the rows of a table; `images` samples per visit."""

    def __init__(self, rows: pd.DataFrame, images: int = 1, sessions: bool = True) -> None:
        rows = rows.loc[rows.index.repeat(images)]
        self.participants = rows["participant_id"].tolist()
        if sessions:
            self.sessions = rows["session_id"].tolist()
        self.sample_ids = [f"{i}-{p}-{s}" for i, (p, s) in enumerate(rows.iloc[:, :2].itertuples(index=False))]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"sample_id": self.sample_ids[index]}


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype={"participant_id": str, "session_id": str})


def people(path: Path) -> set[str]:
    return set(read(path)["participant_id"])


def everything(folder: Path) -> dict[str, str]:
    """The text of all files but our own facts, which tell the table's checksum."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "medtrain.json")
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def write_by_hand(folder: Path, config: str, facts: dict[str, Any], tables: dict[str, list[tuple[str, str]]]) -> Path:
    """A split's folder as another program may have written it."""
    for name, pairs in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{person}\t{session}\n" for person, session in pairs)
        (folder / name).write_text("participant_id\tsession_id\n" + text)
    (folder / config).write_text(json.dumps(facts))
    return folder


SINGLE = {
    "subset_name": "test",
    "stratification": [],
    "longitudinal": False,
    "seed": 3,
    "n_test": 0.5,
    "p_categorical_threshold": 0.8,
    "p_continuous_threshold": 0.8,
}
KFOLDS = {"subset_name": "validation", "stratification": None, "longitudinal": False, "seed": 3, "n_splits": 2}


def two_folds(folder: Path) -> Path:
    a, b = [("a", "ses-M6"), ("a", "ses-M12")], [("b", "ses-M6"), ("b", "ses-M12")]
    tables = {}
    for index, (train, held_out) in enumerate(((a, b), (b, a))):
        tables[f"split-{index}/train.tsv"] = train
        tables[f"split-{index}/train_baseline.tsv"] = train[:1]
        tables[f"split-{index}/validation_baseline.tsv"] = held_out[:1]
    return write_by_hand(folder, "kfold_config.json", KFOLDS, tables)


def test_what_make_split_writes(tmp_path: Path) -> None:
    rows = cohort()
    folder = make_split(rows, 0.25, tmp_path, stratification=["age", "sex"], seed=4)
    assert folder == tmp_path / "split"
    assert sorted(everything(folder)) == [
        "single_split_config.json",
        "split_categorical_stats.tsv",
        "split_continuous_stats.tsv",
        "test_baseline.tsv",
        "train.tsv",
        "train_baseline.tsv",
    ]
    train, test = read(folder / "train.tsv"), read(folder / "test_baseline.tsv")
    assert not set(train["participant_id"]) & set(test["participant_id"])
    assert len(test) == 10
    assert test["participant_id"].is_unique
    assert set(test["session_id"]) == {"ses-M6"}
    assert len(train) == rows["participant_id"].isin(train["participant_id"]).sum()
    assert list(train.columns) == list(test.columns) == ["participant_id", "session_id", "age", "sex"]
    assert json.loads((folder / "single_split_config.json").read_text()) == {
        **SINGLE,
        "stratification": ["age", "sex"],
        "seed": 4,
        "n_test": 0.25,
    }
    figures = read(folder / "split_continuous_stats.tsv")
    assert figures[["label", "statistic"]].values.tolist() == [["age", "mean"], ["age", "std"]]
    assert figures.loc[0, "test"] == pytest.approx(test["age"].mean())
    assert figures.loc[1, "train"] == pytest.approx(read(folder / "train_baseline.tsv")["age"].std())
    counts = read(folder / "split_categorical_stats.tsv")
    assert counts.columns.tolist() == ["label", "value", "statistic", "train", "test"]
    assert counts["statistic"].tolist() == ["proportion", "count"] * 2
    assert counts.loc[1, "test"] == (test["sex"] == "F").sum()
    facts = json.loads((folder / "medtrain.json").read_text())
    assert facts["medtrain"] == medtrain.__version__
    assert facts["sizes"] == [{"train": 30, "test": 10}]
    assert min(facts["p_values"].values()) >= 0.8


def test_what_make_kfold_writes(tmp_path: Path) -> None:
    rows = cohort()
    folder = make_kfold(rows, 4, tmp_path, stratification=["sex", "age"], longitudinal=True, seed=1)
    assert folder == tmp_path / "4_fold"
    names = {"train.tsv", "train_baseline.tsv", "validation.tsv", "validation_baseline.tsv"}
    held_out = []
    for index in range(4):
        inside = folder / f"split-{index}"
        assert {path.name for path in inside.iterdir()} == names
        assert not people(inside / "train.tsv") & people(inside / "validation.tsv")
        assert len(read(inside / "train.tsv")) + len(read(inside / "validation.tsv")) == len(rows)
        held_out += sorted(people(inside / "validation_baseline.tsv"))
    assert sorted(held_out) == sorted(set(rows["participant_id"]))
    config = json.loads((folder / "kfold_config.json").read_text())
    assert config == {**KFOLDS, "stratification": "sex,age", "longitudinal": True, "seed": 1, "n_splits": 4}


@pytest.mark.parametrize("make", [make_split, make_kfold])
def test_the_seed_decides_and_the_order_of_rows_does_not(tmp_path: Path, make: Any) -> None:
    rows = cohort()
    settings = {"output_dir": tmp_path, "stratification": ["sex", "site"]}
    first, again = make(rows, seed=5, **settings), make(rows.sample(frac=1, random_state=0), seed=5, **settings)
    assert again.name == f"{first.name}_2"
    assert everything(again) == everything(first)
    assert everything(make(rows, seed=6, **settings)) != everything(first)


def test_a_fresh_seed_is_recorded(tmp_path: Path) -> None:
    rows = cohort()
    first = make_kfold(rows, 3, tmp_path)
    seed = json.loads((first / "kfold_config.json").read_text())["seed"]
    assert everything(make_kfold(rows, 3, tmp_path, seed=seed)) == everything(first)


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_files_give_what_their_rows_give(tmp_path: Path, suffix: str) -> None:
    rows = cohort()
    table = tmp_path / f"people{suffix}"
    rows.to_csv(table, sep="," if suffix == ".csv" else "\t", index=False)
    folder = make_split(table, seed=0, stratification="sex")
    assert folder == tmp_path / "split"
    assert everything(folder) == everything(make_split(rows, output_dir=tmp_path, seed=0, stratification="sex"))


def test_ids_stay_texts(tmp_path: Path) -> None:
    table = tmp_path / "people.tsv"
    table.write_text("participant_id\tsession_id\n" + "".join(f"{i:03d}\t01\n" for i in range(9)) + "NA\t01\n")
    folder = make_kfold(table, 5, seed=0)
    found = KFold(folder)._sides
    assert {p for side in found.values() for p, _ in side.held_out} == {*(f"{i:03d}" for i in range(9)), "NA"}
    assert {s for side in found.values() for _, s in side.train} == {"01"}


@pytest.mark.parametrize(
    "sessions",
    [
        ["ses-M6", "ses-M12", "ses-M120"],
        ["ses-M00", "ses-M006", "ses-M12"],
        ["ses-bl", "ses-M6"],
        ["baseline", "1", "2", "10"],
        ["2019-12-31", "2020-02-01", "2020-10-01"],
        ["ses-20191231", "ses-2020-02-01"],
        ["ses-1.25", "ses-1.5"],
    ],
)
def test_the_first_session(tmp_path: Path, sessions: list[str]) -> None:
    assert sorted(set(sessions), key=session_key) == sessions
    rows = pd.DataFrame([(f"sub-{i}", s) for i in range(4) for s in reversed(sessions)])
    rows.columns = ["participant_id", "session_id"]
    folder = make_kfold(rows, 2, tmp_path, seed=0)
    assert set(read(folder / "split-0" / "validation_baseline.tsv")["session_id"]) == {sessions[0]}


def test_repeats(tmp_path: Path) -> None:
    rows = cohort(12)
    folder = make_kfold(rows, 3, tmp_path, repeats=2, seed=0)
    assert folder.name == "2x3_fold"
    held_out = [people(folder / f"split-{i}" / "validation_baseline.tsv") for i in range(6)]
    assert set().union(*held_out[:3]) == set().union(*held_out[3:]) == set(rows["participant_id"])
    assert held_out[:3] != held_out[3:]
    splits = list(KFold(folder).get_splits(Visits(rows)))
    assert [split.index for split in splits] == list(range(6))


def test_one_site_left_out_at_a_time(tmp_path: Path) -> None:
    rows = cohort()
    folder = make_kfold(rows, output_dir=tmp_path, groups="site", leave_one_out=True)
    assert folder.name == "leave_one_site_out"
    for index, site in enumerate("ABC"):
        held_out = read(folder / f"split-{index}" / "validation_baseline.tsv")
        assert set(held_out["site"]) == {site}
        assert site not in set(read(folder / f"split-{index}" / "train.tsv")["site"])
    assert len(list(KFold(folder).get_splits(Visits(rows)))) == 3


@pytest.mark.parametrize("make", [make_split, make_kfold])
def test_groups_stay_together(tmp_path: Path, make: Any) -> None:
    rows = cohort(60)
    rows["family"] = [f"fam-{int(p[4:]) // 3}" for p in rows["participant_id"]]
    folder = make(rows, output_dir=tmp_path, groups="family", seed=0)
    for inside in [folder] if make is make_split else folder.glob("split-*"):
        held_out = read(next(path for path in inside.glob("*_baseline.tsv") if "train" not in path.name))
        assert not set(held_out["family"]) & set(read(inside / "train.tsv")["family"])
        assert len(held_out) == 12


def test_folds_inside_a_held_out_set(tmp_path: Path) -> None:
    rows = cohort()
    folder = make_split(rows, 0.2, tmp_path, seed=0, stratification=["sex"], n_splits=4)
    tested = people(folder / "test_baseline.tsv")
    assert len(tested) == 8
    splits = list(KFold(folder / "4_fold").get_splits(Visits(rows)))
    assert len(splits) == 4
    for split in splits:
        groups = {name: set(group.participants) for name, group in split.groups.items()}  # type: ignore[attr-defined]
        assert set(groups) == {"train", "validation", "test"}
        assert groups["test"] == tested
        assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == 40


@pytest.mark.parametrize("seed", range(5))
def test_a_small_cohort_reaches_the_default_thresholds(tmp_path: Path, seed: int) -> None:
    folder = make_split(cohort(20, seed), output_dir=tmp_path, stratification=True, seed=seed)
    p_values = json.loads((folder / "medtrain.json").read_text())["p_values"]
    assert set(p_values) == {"age", "sex"}
    assert min(p_values.values()) >= 0.8


def test_thresholds_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        make_split(
            cohort(),
            0.2,
            tmp_path / "new",
            stratification=["sex", "age"],
            p_continuous_threshold=1,
            n_try_max=5,
            seed=0,
        )
    assert "in 5 balanced deals" in str(refused.value)
    assert "wanted 1 (p_continuous_threshold)" in str(refused.value)
    assert "sex" not in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_p_values_tell_different_sides_apart() -> None:
    rows = cohort(60)
    table = Table.read(rows, ["age", "sex"], None)
    old = (table.baseline["age"] > table.baseline["age"].median()).to_numpy()
    ages = table.baseline["age"]
    assert table.p_values(old)["age"] == pytest.approx(ttest_ind(ages[old], ages[~old]).pvalue)
    assert table.p_values((table.baseline["sex"] == "F").to_numpy())["sex"] < 1e-10
    half = np.arange(60) % 2 == 0
    assert 0 < table.p_values(half)["age"] <= 1


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        ({}, {"stratification": ["sexe"]}, r"no column 'sexe' \(did you mean 'sex'\?\); it has: participant_id"),
        ({"participant_id": None}, {}, "participant_id is missing in .* rows:\n  - row 1"),
        ({"session_id": " "}, {}, "session_id is missing"),
        ({"session_id": "ses-1"}, {"stratification": ["age"]}, "rows of one session contradict each other in age"),
        ({}, {"n_splits": 50}, "50 folds cannot be made of 40 participants"),
        ({}, {"subset_name": "train"}, "subset_name='train'"),
        ({}, {"subset_name": "../test"}, "subset_name"),
        ({}, {"seed": -1}, "seed=-1"),
        ({}, {"repeats": 0}, "repeats=0"),
        ({}, {"leave_one_out": True}, "leave_one_out needs the column"),
        ({}, {"groups": "age"}, "a participant must have one age in all sessions"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(tmp_path: Path, change: Any, settings: Any, said: str) -> None:
    with pytest.raises((DataError, UsageError), match=said):
        make_kfold(cohort().assign(**change), **{"output_dir": tmp_path / "new", **settings})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_test": 0}, "n_test=0"),
        ({"n_test": 40}, "40 of 40 participants cannot be held out"),
        ({"p_categorical_threshold": 1.2}, "p_categorical_threshold=1.2: must be between 0 and 1"),
        ({"n_try_max": 0}, "n_try_max=0"),
        ({"output_dir": None}, "output_dir is missing"),
    ],
)
def test_what_make_split_refuses(tmp_path: Path, settings: Any, said: str) -> None:
    with pytest.raises((DataError, UsageError), match=said):
        make_split(cohort(), **{"output_dir": tmp_path, **settings})
    assert list(tmp_path.iterdir()) == []


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.tsv: cannot be read: No such file"):
        make_kfold(tmp_path / "none.tsv")
    (tmp_path / "commas.tsv").write_text("participant_id,session_id\na,1\n")
    with pytest.raises(DataError, match=r"no column 'participant_id'.*it has: participant_id,session_id"):
        make_kfold(tmp_path / "commas.tsv")
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(DataError, match="not a table of tabs"):
        make_kfold(tmp_path / "empty.tsv")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="the split cannot be written"):
        make_kfold(cohort(), output_dir=tmp_path / "file")


def test_many_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    code = (
        "import sys; from medtrain import make_kfold; assert 'pandas' not in sys.modules; import pandas as pd\n"
        "rows = pd.DataFrame({'participant_id': list('abcdef'), 'session_id': '1'})\n"
        "for seed in range(5): print(make_kfold(rows, 2, sys.argv[1], seed=seed))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    made = [line for process in processes for line in process.communicate(timeout=60)[0].splitlines()]
    assert len(set(made)) == 10 == len(list(tmp_path.iterdir()))
    assert all(len(KFold(folder)) == 2 for folder in made)


def test_a_folder_of_another_program_is_read(tmp_path: Path) -> None:
    folder = two_folds(tmp_path / "2_fold")
    rows = pd.DataFrame([(p, s) for p in "ab" for s in ("ses-M6", "ses-M12")], columns=["participant_id", "session_id"])
    first, second = KFold(folder).get_splits(Visits(rows))
    assert (first.index, second.index) == (0, 1)
    assert first.train_dataset.sample_ids == ["0-a-ses-M6", "1-a-ses-M12"]  # type: ignore[attr-defined]
    assert first.val_dataset.sample_ids == ["2-b-ses-M6"]  # type: ignore[union-attr]
    assert first.val_dataset[0] == {"sample_id": "2-b-ses-M6"}  # type: ignore[index]
    assert second.train_dataset.participants == ["b", "b"]  # type: ignore[attr-defined]

    single = write_by_hand(
        tmp_path / "split",
        "single_split_config.json",
        {**SINGLE, "longitudinal": True},
        {
            "train.tsv": [("a", "ses-M6"), ("a", "ses-M12")],
            "train_baseline.tsv": [("a", "ses-M6")],
            "test.tsv": [("b", "ses-M6"), ("b", "ses-M12")],
            "test_baseline.tsv": [("b", "ses-M6")],
        },
    )
    split = SingleSplit(single).get_split(Visits(rows))
    assert {name: len(group) for name, group in split.groups.items()} == {"train": 2, "validation": 2}
    assert isinstance(open_splits(single), SingleSplit) and isinstance(open_splits(folder), KFold)


def test_training_on_patches_and_validating_on_whole_images(tmp_path: Path) -> None:
    rows = cohort(10)
    folder = make_kfold(rows, 5, tmp_path, seed=0)
    patches, whole = Visits(rows, images=7), Visits(rows)
    for split in KFold(folder).get_splits(patches, whole, splits=[1, 3]):
        assert len(split.train_dataset) == 7 * len(read(folder / f"split-{split.index}" / "train.tsv"))
        assert len(split.val_dataset or ()) == 2


class AugmentedVisits(Visits):
    """Visits that are augmented unless they are for evaluation."""

    def evaluation(self) -> Visits:
        plain = Visits.__new__(Visits)
        vars(plain).update(vars(self))
        return plain


def test_what_is_held_out_is_not_augmented(tmp_path: Path) -> None:
    rows = cohort(10)
    folder = make_kfold(rows, 5, tmp_path, seed=0)
    for split in KFold(folder).get_splits(AugmentedVisits(rows), splits=[0, 3]):
        assert type(split.train_dataset.dataset) is AugmentedVisits  # type: ignore[attr-defined]
        assert type(split.val_dataset.dataset) is Visits  # type: ignore[union-attr]
    data = Data(whole=AugmentedVisits(rows))
    groups = split_groups(data, 0, splits=folder, index=1).groups
    assert [type(group.dataset) for group in groups.values()] == [AugmentedVisits, Visits]  # type: ignore[attr-defined]
    given = AugmentedVisits(rows)
    (split,) = KFold(folder).get_splits(AugmentedVisits(rows), given, splits=[2])
    assert split.val_dataset.dataset is given  # type: ignore[union-attr]


def test_pairs_that_the_dataset_lacks_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = cohort()
    folder = make_kfold(rows, 4, tmp_path, seed=0, longitudinal=True)
    gone = rows.index[rows["participant_id"].isin(["sub-003", "sub-010"])]
    with caplog.at_level(logging.WARNING, "medtrain"):
        splits = list(KFold(folder).get_splits(Visits(rows.drop(gone))))
    assert len(splits) == 4
    (record,) = caplog.records
    assert f"{len(gone)} (participant, session) pairs of the split's tables are not in the dataset" in record.message
    assert "sub-003 ses-M6" in record.message
    caplog.clear()
    list(KFold(folder).get_splits(Visits(rows)))
    assert not caplog.records


def test_a_dataset_without_sessions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = cohort(10)
    folder = make_kfold(rows, 5, tmp_path, seed=0)
    with caplog.at_level(logging.WARNING, "medtrain"):
        split = next(KFold(folder).get_splits(Visits(rows, sessions=False)))
    assert "all samples of a participant are used" in caplog.text
    assert len(split.train_dataset) + len(split.val_dataset or ()) == len(rows)


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    rows = cohort(10)
    folder = make_kfold(rows, 5, tmp_path, seed=0)
    others = rows.assign(participant_id="person " + rows["participant_id"])
    with pytest.raises(
        DataError, match=r"training side has no sample .*\(the table lists sub-.* ses-M6 first, the .*person"
    ):
        next(KFold(folder).get_splits(Visits(others)))
    bare = Visits(rows)
    bare.participants = None  # type: ignore[assignment]
    with pytest.raises(DataError, match="does not tell whose"):
        KFold(folder).get_splits(bare)
    with pytest.raises(UsageError, match="there is no fold 5; there are 0 to 4"):
        KFold(folder).get_splits(Visits(rows), splits=[0, 5])


@pytest.mark.parametrize("name", ["train.tsv", "train_baseline.tsv"])
def test_a_participant_on_both_sides_is_refused(tmp_path: Path, name: str) -> None:
    folder = two_folds(tmp_path)
    with (folder / "split-1" / name).open("a") as file:
        file.write("a\tses-M24\n")
    with pytest.raises(DataError, match=r"split-1: participants are on both sides:\n  - 'a' in train"):
        KFold(folder)


def test_a_participant_held_out_twice_is_refused(tmp_path: Path) -> None:
    folder = two_folds(tmp_path)
    with (folder / "split-0" / "validation_baseline.tsv").open("a") as file:
        file.write("c\tses-M6\n")
    with (folder / "split-1" / "validation_baseline.tsv").open("a") as file:
        file.write("c\tses-M6\n")
    with pytest.raises(DataError, match=r"held out in two folds:\n  - 'c' in split-0 and split-1"):
        KFold(folder)


def test_folds_over_a_held_out_set_are_refused(tmp_path: Path) -> None:
    rows = cohort(20)
    folder = make_split(rows, 4, tmp_path, seed=0)
    inside = make_kfold(rows, 4, folder, seed=0)
    with pytest.raises(DataError, match=r"participants that .*split holds out; make them from its train.tsv"):
        KFold(inside)


def test_folders_that_are_no_splits(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        KFold(tmp_path / "none")
    folder = make_split(cohort(10), output_dir=tmp_path, seed=0)
    with pytest.raises(UsageError, match=r"kfold_config.json is missing; .* open it with SingleSplit"):
        KFold(folder)
    (folder / "test_baseline.tsv").unlink()
    with pytest.raises(UsageError, match=r"test_baseline.tsv: cannot be read"):
        SingleSplit(folder)
    (folder / "single_split_config.json").write_text('{"seed": ')
    with pytest.raises(UsageError, match="not valid JSON"):
        SingleSplit(folder)


def test_twenty_thousand_participants(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = pd.DataFrame({"participant_id": [f"sub-{i:05d}" for i in range(20_000)], "session_id": "ses-M0"})
    rows["age"], rows["sex"] = generator.normal(70, 8, 20_000).round(1), generator.choice(["F", "M"], 20_000)
    start = time.process_time()
    make_split(rows, 0.2, tmp_path, stratification=["age", "sex"], seed=0)
    assert time.process_time() - start < 5
    start = time.process_time()
    make_kfold(rows, 5, tmp_path, stratification=["age", "sex"], seed=0)
    assert time.process_time() - start < 5
