from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cohort_files import CohortFiles, noise
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.mammography.cohort import layouts
from medtrain_plugins.mammography.cohort.cohort import read_cohort
from medtrain_plugins.mammography.evaluation import strata

FIRST = "101_L_CC_2015-08-03_1.png"


def refused(table: Path, **options) -> str:
    with pytest.raises(DataError) as error:
        read_cohort(table, **options)
    return str(error.value)


def test_embed(embed):
    cohort = read_cohort(embed.write())
    table = cohort.table
    assert cohort.layout == "embed" and cohort.groups == ["train", "validation", "test"]
    assert len(table) == 32 and cohort.about["patients"] == 4 and cohort.about["exams"] == 8
    assert cohort.about["patients_with_cancer"] == 1 and cohort.about["dropped"] == {}
    first = table.iloc[0]
    assert first["image_path"] == str(embed.folder / "train" / FIRST)
    assert first["patient_id"] == "101" and first["exam_id"] == "101_2015-08-03"
    assert (first["laterality"], first["view"], first["exam_year"]) == ("L", "CC", 2015)
    assert (first["years_to_cancer"], first["years_to_followup"]) == (3, 3)
    assert (first["density"], first["cancer_type"], first["race"]) == (1, 0, 6)
    other = table[table["patient_id"] == "102"].iloc[0]
    assert np.isnan(other["years_to_cancer"]) and other["cancer_type"] == -1
    assert layouts.RACES[other["race"]] == "African American  or Black"
    assert set(cohort.group("validation").table["patient_id"]) == {"102"}
    json.dumps(cohort.about, allow_nan=False)


def test_csaw(csaw):
    cohort = read_cohort(csaw.write())
    first = cohort.table[cohort.table["patient_id"] == "b"].iloc[0]
    assert cohort.layout == "csaw" and len(cohort.table) == 24
    assert (first["laterality"], first["view"], first["exam_id"]) == ("L", "CC", "b_2010")
    assert (first["years_to_cancer"], first["years_to_followup"], first["group"]) == (4, 6, "validation")
    assert (first["density"], first["cancer_type"]) == (2, 2)
    assert "race" not in cohort.table and "exam_date" not in cohort.table


def test_one_race_table():
    assert strata.RACES is layouts.RACES  # one table only


def test_documented_other_names_and_separator(embed):
    for row in embed.rows:
        row["ImageLaterality"] = row.pop("ImageLateralityFinal")
        row["cancer_type"] = row.pop("path_severity")
        row["race"] = row.pop("RACE_DESC")
        row["study_date_year"] = row.pop("study_date_anon")[:4]
    table = embed.write()
    table.write_text(table.read_text().replace(",", ";"))
    cohort = read_cohort(table)
    assert cohort.table.iloc[0]["exam_id"] == "101_2015-08-03"
    assert len(cohort.table) == 32 and cohort.table.iloc[0]["cancer_type"] == 0


def test_own_column_names(embed):
    for row in embed.rows:
        row["subject"] = row.pop("patient_id")
    table = embed.write()
    assert "patient_id (patient_id or empi_anon)" in refused(table)
    assert len(read_cohort(table, columns={"patient_id": "subject"}).table) == 32
    with pytest.raises(ConfigError, match="did you mean 'patient_id'"):
        read_cohort(table, columns={"patient": "subject"})
    with pytest.raises(ConfigError, match=r"no column 'subjct' \(did you mean 'subject'"):
        read_cohort(table, columns={"patient_id": "subjct"})


def test_a_table_of_neither_layout_lists_what_lacks(tmp_path, embed):
    embed.write()
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    message = refused(tmp_path / "x.csv", images=embed.folder)
    assert "it has a, b" in message and "- embed: patient_id" in message and "- csaw: file_name" in message
    message = refused(embed.table, layout="csaw")
    assert "file_name (file_name or anon_filename)" in message and "embed" not in message.split("layout:")[1]
    with pytest.raises(ConfigError, match="'cswa'"):
        read_cohort(embed.table, layout="cswa")


def test_unreadable_tables(tmp_path, embed):
    embed.write()
    assert "No such file" in refused(tmp_path / "none.csv", images=embed.folder)
    for name, content in {"empty.csv": "", "header.csv": "patient_id,view\n", "long.csv": "a,b\n1,2,3\n"}.items():
        (tmp_path / name).write_text(content)
        assert name in refused(tmp_path / name, images=embed.folder)
    (tmp_path / "binary.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    assert "binary.csv" in refused(tmp_path / "binary.csv", images=embed.folder)


def test_a_folder_stands_for_its_only_table(embed):
    embed.write()
    assert len(read_cohort(embed.folder).table) == 32
    (embed.folder / "other.csv").write_text("a\n")
    assert "cohort.csv, other.csv" in refused(embed.folder)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Time_to_Cancer_Years", -1, "impossible years: 1, first: cohort.csv:2 (years to cancer: -1 is negative)"),
        ("years_last_followup", -2, "impossible years: 1, first: cohort.csv:2 (years of follow-up: -2 is negative)"),
        ("Time_to_Cancer_Years", "soon", "'soon' is not a number of years"),
        ("ImageLateralityFinal", "B", "unknown laterality: 1, first: cohort.csv:2 (ImageLateralityFinal is 'B')"),
        ("view", "XCCL", "unknown view: 1, first: cohort.csv:2 (view is 'XCCL')"),
        ("study_date_anon", "03/08/2015", "unparsable date: 1, first: cohort.csv:2 (study_date_anon is '03/08/2015')"),
        ("study_date_anon", "2015-02-30", "unparsable date: 1"),
        ("study_date_anon", "2015", "unparsable date: 1"),
        ("study_date_anon", "2015-08-04", "row without image: 1, first: cohort.csv:2 (101_L_CC_2015-08-04)"),
        ("patient_id", "", "no patient: 1, first: cohort.csv:2"),
    ],
)
def test_bad_rows_are_named_or_dropped(embed, column, value, message):
    embed.rows[0][column] = value
    table = embed.write()
    assert message in refused(table)
    cohort = read_cohort(table, on_bad_rows="drop")
    assert FIRST not in set(cohort.table["file_name"])
    assert len(cohort.table) == 31 and sum(cohort.about["dropped"].values()) >= 1


def test_counts_and_examples(embed):
    for row in embed.rows[:5]:
        row["view"] = "ML"
    embed.rows[7]["years_last_followup"] = "-1"
    message = refused(embed.write())
    assert "unknown view: 5, first: cohort.csv:2 (view is 'ML'); cohort.csv:3" in message
    assert "cohort.csv:5" not in message  # three examples a kind
    assert "impossible years: 1" in message and 'on_bad_rows = "drop"' in message
    # The images of rows whose view is unknown belong to no row either.
    assert read_cohort(embed.table, on_bad_rows="drop").about["dropped"] == {
        "unknown view": 5,
        "impossible years": 1,
        "image without row": 5,
    }


def test_duplicate_and_contradictory_rows(embed):
    embed.rows.append(dict(embed.rows[3]))
    assert "duplicate row: 1, first: cohort.csv:34" in refused(embed.write())
    assert len(read_cohort(embed.table, on_bad_rows="drop").table) == 32
    embed.rows[-1]["density"] = 4
    assert "contradictory rows: 2, first: cohort.csv:5; cohort.csv:34" in refused(embed.write())
    assert len(read_cohort(embed.table, on_bad_rows="drop").table) == 31


def test_a_view_taken_twice_is_no_duplicate(embed):
    embed.images["train/101_L_CC_2015-08-03_2.png"] = noise(99)
    embed.rows.append(dict(embed.rows[0]))
    cohort = read_cohort(embed.write())
    assert len(cohort.table) == 33 and cohort.about["repeated_views"] == 1
    del embed.rows[-1]
    assert len(read_cohort(embed.write()).table) == 33


def test_images_without_row_and_with_other_names(embed):
    del embed.rows[0]
    embed.images["train/scan.png"] = noise(98)
    message = refused(embed.write())
    assert f"image without row: 1, first: {embed.folder / 'train' / FIRST}" in message
    assert "file name is not <digits>_<L|R>_<CC|MLO>_<YYYY-MM-DD>_<anything>.png: 1" in message
    assert len(read_cohort(embed.table, on_bad_rows="drop").table) == 31


def test_csaw_rows_without_file_and_duplicates(csaw):
    csaw.images.pop("train/a_2010_Left_CC.png")
    csaw.rows.append(dict(csaw.rows[5]))
    csaw.rows[2]["exam_year"] = "20x2"
    csaw.rows[3]["laterality"] = "Both"
    message = refused(csaw.write())
    assert "missing file: 1, first: cohort.csv:2 (a_2010_Left_CC.png)" in message
    assert "duplicate row: 1, first: cohort.csv:26" in message
    assert "unknown exam year: 1, first: cohort.csv:4 (exam_year is '20x2')" in message
    assert "unknown laterality: 1, first: cohort.csv:5 (laterality is 'Both')" in message
    assert len(read_cohort(csaw.table, on_bad_rows="drop").table) == 21


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ((noise(1) >> 8).astype(np.uint8), "8-bit image: 1"),
        (np.dstack([(noise(1) >> 8).astype(np.uint8)] * 3), "colour image: 1"),
        (noise(1, (24, 32)), "wrong size: 1"),
    ],
)
def test_images_are_checked_by_their_header(embed, pixels, message):
    embed.images[f"train/{FIRST}"] = pixels
    refusal = refused(embed.write())
    assert message in refusal and FIRST in refusal
    assert len(read_cohort(embed.table, on_bad_rows="drop").table) == 31


def test_a_file_that_is_no_image(embed):
    embed.write()
    (embed.folder / "train" / FIRST).write_text("not an image, although its name says so")
    assert "unreadable image: 1" in refused(embed.table)


def test_views_of_one_breast_must_agree(embed):
    embed.rows[0]["Time_to_Cancer_Years"] = 2
    assert "views of one breast with different years: 2, first: cohort.csv:2; cohort.csv:3" in refused(embed.write())
    assert len(read_cohort(embed.table, on_bad_rows="drop").table) == 30


@pytest.mark.parametrize("on_bad_rows", ["error", "drop"])
def test_a_patient_in_two_groups_is_refused(embed, on_bad_rows):
    embed.images[f"test/{FIRST}"] = embed.images.pop(f"train/{FIRST}")
    message = refused(embed.write(), on_bad_rows=on_bad_rows)
    assert "in several: 1" in message and "patient 101: test and train" in message


@pytest.mark.parametrize("on_bad_rows", ["error", "drop"])
def test_an_empty_group_is_refused(embed, on_bad_rows):
    for name in [name for name in embed.images if name.startswith("val/")]:
        del embed.images[name]
    embed.rows = [row for row in embed.rows if row["patient_id"] != "102"]
    table = embed.write()
    assert read_cohort(table, on_bad_rows=on_bad_rows).groups == ["train", "test"]
    (embed.folder / "val").mkdir()
    assert "val: no PNG image in this folder" in refused(table, on_bad_rows=on_bad_rows)


def test_a_group_that_loses_all_its_images_is_refused(embed):
    for row in embed.rows:
        if row["patient_id"] == "103":
            row["view"] = "?"
    assert "group test has no usable image left" in refused(embed.write(), on_bad_rows="drop")


def test_no_usable_row(embed):
    for row in embed.rows:
        row["years_last_followup"] = -3
    assert "impossible years: 32" in refused(embed.write(), on_bad_rows="drop")


def test_groups_from_the_split_column(embed):
    groups = {"101": "train", "102": "val", "103": "Test", "104": "validation"}
    flat = CohortFiles(embed.folder.parent / "flat", [dict(row) for row in embed.rows])
    flat.images = {Path(name).name: pixels for name, pixels in embed.images.items()}
    assert read_cohort(flat.write()).groups == []
    for row in flat.rows:
        row["split"] = groups[row["patient_id"]]
    cohort = read_cohort(flat.write())
    assert cohort.groups == ["train", "validation", "test"]
    assert set(cohort.group("validation").table["patient_id"]) == {"102", "104"}
    flat.rows[0]["split"] = "dev"
    assert "unknown split: 1, first: cohort.csv:2 (split is 'dev')" in refused(flat.write())


def test_split_and_folder_must_agree(embed):
    for row in embed.rows:
        row["split"] = {"102": "val", "103": "train"}.get(row["patient_id"], "train")
    assert "split and folder disagree: 8" in refused(embed.write())


def test_loose_images_beside_group_folders(embed):
    embed.images["101_L_CC_2015-08-03_9.png"] = noise(97)
    assert "lie beside the folders train, val, test" in refused(embed.write())
    assert "no such folder" in refused(embed.table, images=embed.folder / "nowhere")


def test_codes_that_are_not_understood_are_unknown_and_counted(embed):
    embed.rows[0]["density"] = 5
    embed.rows[1]["density"] = "3.0"
    embed.rows[2]["density"] = "b"
    embed.rows[3]["RACE_DESC"] = "Martian"
    embed.rows[4]["RACE_DESC"] = "asian"
    cohort = read_cohort(embed.write())
    table = cohort.table.set_index("file_name")
    names = [Path(name).name for name in embed.images]
    assert table.loc[names[:3], "density"].tolist() == [-1, 3, 2]
    assert table.loc[names[3:5], "race"].tolist() == [-1, 2]
    assert cohort.about["not_understood"] == {"density": 1, "RACE_DESC": 1}


def test_blank_lines_and_floats_as_patient_numbers(embed):
    for row in embed.rows:
        row["patient_id"] += ".0"
    table = embed.write()
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:3], "", *lines[3:], ",,,,,,,,", ""]))
    assert set(read_cohort(table).table["patient_id"]) == {"101", "102", "103", "104"}
    table.write_text(table.read_text().replace("101.0,L,CC,2017", "101.0,Q,CC,2017"))
    assert "cohort.csv:7 (ImageLateralityFinal is 'Q')" in refused(table)


def test_the_order_is_not_that_of_the_disk(embed, tmp_path):
    table = read_cohort(embed.write()).table
    again = CohortFiles(tmp_path / "again", embed.rows[::-1], dict(reversed(embed.images.items())))
    other = read_cohort(again.write()).table
    drop = ["image_path"]
    assert table.drop(columns=drop).equals(other.drop(columns=drop))
    order = ["patient_id", "exam_id", "laterality", "view"]
    assert table[order].equals(table[order].sort_values(order, ignore_index=True))


def test_on_bad_rows_is_checked(embed):
    with pytest.raises(ConfigError, match="'ignore'"):
        read_cohort(embed.write(), on_bad_rows="ignore")


def test_columns_of_risk_factors_are_carried_along(embed):
    for row in embed.rows:
        row["factor_age"], row["remark"] = ("3" if row["patient_id"] == "101" else ""), "x"
    table = read_cohort(embed.write()).table
    assert table["factor_age"].tolist() == 8 * ["3"] + 24 * [""] and "remark" not in table
