from __future__ import annotations

from pathlib import Path

import pytest
from cohort_files import noise
from medtrain.errors import DataError
from medtrain_plugins.mammography.cohort.cohort import read_cohort
from medtrain_plugins.mammography.cohort.exams import (
    breasts,
    complete_exams,
    lmv_pairs,
    view_pairs,
    visits,
    without_repeats,
)


def test_pairs_of_embed(embed):
    pairs = lmv_pairs(read_cohort(embed.write()))
    assert pairs["sample_id"].tolist() == [f"{p}_2017-01-05_{s}" for p in (101, 102, 103, 104) for s in "LR"]
    first = pairs.iloc[0]
    names = {name: Path(first[name]).name for name in ("current_cc", "current_mlo", "previous_cc", "previous_mlo")}
    assert names == {
        "current_cc": "101_L_CC_2017-01-05_1.png",
        "current_mlo": "101_L_MLO_2017-01-05_1.png",
        "previous_cc": "101_L_CC_2015-08-03_1.png",
        "previous_mlo": "101_L_MLO_2015-08-03_1.png",
    }
    # By days, not by calendar years (which would be 2); labels are those of the current exam.
    assert first["time_gap"] == pytest.approx(521 / 365.25)
    assert (first["years_to_cancer"], first["years_to_followup"]) == (2, 2)
    assert pairs["group"].tolist() == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2 + ["train"] * 2


def test_pairs_of_csaw(csaw):
    pairs = lmv_pairs(read_cohort(csaw.write()))
    assert pairs["sample_id"].tolist() == [f"{p}_2012_{s}" for p in "abc" for s in "LR"]
    assert pairs["time_gap"].tolist() == [2.0] * 6


def test_gaps_end_at_five_years(csaw):
    for row in csaw.rows:
        row["exam_year"] = 2004 if row["exam_year"] == 2010 else 2012
    assert set(lmv_pairs(read_cohort(csaw.write()))["time_gap"]) == {5.0}


def test_views_taken_twice_on_a_day_count_once(embed):
    for suffix in "05":
        name = f"train/101_L_CC_2017-01-05_{suffix}.png"
        embed.images = {name: noise(50), **embed.images}
    cohort = read_cohort(embed.write())
    kept, repeats = without_repeats(cohort.table)
    assert repeats == 2 and len(kept) == 32
    pairs = lmv_pairs(cohort)
    assert len(pairs) == 8 and pairs["time_gap"].min() > 1  # no pair within a day
    assert Path(pairs["current_cc"][0]).name == "101_L_CC_2017-01-05_0.png"  # first by name


def test_an_exam_without_a_view_is_not_skipped(embed):
    """Woman 104 gets a third exam; what lacks in the middle one breaks the chain of its own side only."""
    for side in "LR":
        for view in ("CC", "MLO"):
            embed.images[f"train/104_{side}_{view}_2018-02-01_1.png"] = noise(60)
            row = dict(embed.rows[-1], ImageLateralityFinal=side, view=view, study_date_anon="2018-02-01")
            embed.rows.append(row)
    whole = lmv_pairs(read_cohort(embed.write()))
    assert len(whole[whole["patient_id"] == "104"]) == 4
    lost = "train/104_L_CC_2017-01-05_1.png"
    del embed.images[lost]
    (embed.folder / lost).unlink()
    pairs = lmv_pairs(read_cohort(embed.write(), on_bad_rows="drop"))
    left = pairs.loc[pairs["patient_id"] == "104", "sample_id"].tolist()
    assert left == ["104_2017-01-05_R", "104_2018-02-01_R"]


def test_an_exam_of_the_other_breast_does_not_part_two_exams(embed):
    embed.images["train/101_R_CC_2016-03-01_1.png"] = noise(70)
    embed.rows.append(dict(embed.rows[2], ImageLateralityFinal="R", study_date_anon="2016-03-01", view="CC"))
    pairs = lmv_pairs(read_cohort(embed.write()))
    assert pairs.loc[pairs["patient_id"] == "101", "sample_id"].tolist() == ["101_2017-01-05_L"]


def test_breasts_have_one_row_an_exam_and_side(embed):
    table = breasts(read_cohort(embed.write()).table)
    assert len(table) == 16 and not table.duplicated(["exam_id", "laterality"]).any()
    assert table["cc"].str.contains("_CC_").all() and table["mlo"].str.contains("_MLO_").all()


def test_no_pair_is_an_error(embed):
    embed.rows = [row for row in embed.rows if row["study_date_anon"] != "2017-01-05" or row["patient_id"] != "102"]
    cohort = read_cohort(embed.write(), on_bad_rows="drop")
    assert len(lmv_pairs(cohort)) == 6
    with pytest.raises(DataError, match="no samples in validation"):
        lmv_pairs(cohort.group("validation"))


def third_exam(embed, day="2018-02-01"):
    """Woman 104 gets a third exam."""
    for side in "LR":
        for view in ("CC", "MLO"):
            embed.images[f"train/104_{side}_{view}_{day}_1.png"] = noise(60)
            embed.rows.append(dict(embed.rows[-1], ImageLateralityFinal=side, view=view, study_date_anon=day))


def without(embed, name):
    del embed.images[name]
    (embed.folder / name).unlink(missing_ok=True)
    return read_cohort(embed.write(), on_bad_rows="drop")


def test_a_missing_view_costs_its_own_pairs_only(embed):
    third_exam(embed)
    pairs = view_pairs(without(embed, "train/104_L_CC_2017-01-05_1.png"))
    of_104 = pairs[pairs["patient_id"] == "104"].set_index("sample_id")
    assert len(of_104) == 7  # L CC: one pair, over the gap; the three others two each
    assert Path(of_104.loc["104_2018-02-01_L_CC", "previous"]).name == "104_L_CC_2015-08-03_1.png"


def test_same_day_repeats_are_no_pair(embed):
    embed.images["train/101_L_CC_2017-01-05_0.png"] = noise(50)
    pairs = view_pairs(read_cohort(embed.write()))
    assert len(pairs) == 16 and pairs["time_gap"].min() > 1


def test_exams_need_all_four_views(embed):
    exams = complete_exams(without(embed, "train/104_L_CC_2017-01-05_1.png"))
    assert exams.loc[exams["patient_id"] == "104", "exam_id"].tolist() == ["104_2015-08-03"]
    assert len(exams) == 7 and exams["sample_id"].is_unique


def test_visits_of_dated_exams_end_at_an_incomplete_one(embed):
    third_exam(embed)
    assert visits(read_cohort(embed.write()), 3)["sample_id"].tolist()[-2:] == ["104_2017-01-05", "104_2018-02-01"]
    samples = visits(without(embed, "train/104_L_CC_2017-01-05_1.png"), 3)
    assert "104" not in samples["patient_id"].tolist()


def test_visits_of_exams_by_year_skip_an_incomplete_one(csaw):
    for row in list(csaw.rows):
        if row["patient_id"] == "a" and row["exam_year"] == 2010:
            name = row["file_name"].replace("2010", "2011")
            if "Left_CC" not in name:
                csaw.rows.append(dict(row, file_name=name, exam_year=2011))
                csaw.images[f"train/{name}"] = noise(80)
    samples = visits(read_cohort(csaw.write(), on_bad_rows="drop"), 2).set_index("sample_id")
    assert samples.index.tolist() == ["a_2012", "b_2012", "c_2012"]
    assert Path(samples.loc["a_2012", "visit_0_L_CC"]).name == "a_2010_Left_CC.png"
    assert samples.loc["a_2012", "time_gap"] == 2


def test_the_label_of_an_exam_is_its_earliest_cancer(embed):
    for row in embed.rows[2:4]:  # the other breast of 101, first exam
        assert row["ImageLateralityFinal"] == "R"
        row["Time_to_Cancer_Years"] = 1
    exams = complete_exams(read_cohort(embed.write())).set_index("exam_id")
    assert exams.loc["101_2015-08-03", "years_to_cancer"] == 1
    assert exams.loc["101_2017-01-05", "years_to_cancer"] == 2
    assert exams.loc["102_2017-01-05", "years_to_cancer"] != exams.loc["102_2017-01-05", "years_to_cancer"]
