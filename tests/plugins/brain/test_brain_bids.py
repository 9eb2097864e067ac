"""Trees of brain images: layouts, file types, tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.brain.data.bids import Tree, Visit
from medtrain_plugins.brain.data.caps import FileType, as_file_type, dwi_dti, pet_linear

MNI = "space-MNI152NLin2009cSym"


def make_tree(root: Path, files: list[str], **description: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    about = {"Name": "test", "BIDSVersion": "1.10.0", "DatasetType": "raw"} | description
    (root / "dataset_description.json").write_text(json.dumps(about))
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_sessions_are_in_numeric_order_and_raw_files_are_found(tmp_path: Path) -> None:
    names = [f"sub-{p}/ses-{s}/anat/sub-{p}_ses-{s}_T1w.nii.gz" for p in ("10", "2") for s in ("M6", "M12", "M0")]
    tree = Tree(make_tree(tmp_path, [*names, "sub-2/ses-M0/pet/sub-2_ses-M0_trc-FDG_pet.nii.gz", "README"]))
    assert list(map(str, tree.files)) == [f"sub-{p}_ses-{s}" for p in ("2", "10") for s in ("M0", "M6", "M12")]
    assert tree.table()["session_id"].tolist() == ["ses-M0", "ses-M6", "ses-M12"] * 2
    found, ambiguous = tree.find(as_file_type("T1w"))
    assert len(found) == 6 and not ambiguous
    assert found[Visit("sub-2", "ses-M12")].endswith("sub-2/ses-M12/anat/sub-2_ses-M12_T1w.nii.gz")
    assert set(tree.find(as_file_type("PET"))[0]) == {Visit("sub-2", "ses-M0")}


def test_a_participant_without_session_folders_has_one_session(tmp_path: Path) -> None:
    tree = Tree(make_tree(tmp_path, ["sub-01/anat/sub-01_T1w.nii"]))
    assert list(tree.find(as_file_type("T1w"))[0]) == [Visit("sub-01", "ses-1")]


def test_several_fitting_files_are_told_apart_by_entities(tmp_path: Path) -> None:
    stem = "sub-1/ses-1/anat/sub-1_ses-1"
    tree = Tree(make_tree(tmp_path, [f"{stem}_run-1_T1w.nii.gz", f"{stem}_run-2_T1w.nii.gz", f"{stem}_T1w.json"]))
    found, ambiguous = tree.find(as_file_type("T1w"))
    assert not found and "run-1_T1w.nii.gz, sub-1_ses-1_run-2" in ambiguous[Visit("sub-1", "ses-1")]
    for change in ({"with_entities": {"run": "2"}}, {"without_entities": {"run": "0*1"}}):
        (path,) = tree.find(as_file_type({"preset": "T1w", **change}))[0].values()
        assert path.endswith("run-2_T1w.nii.gz")


def test_caps_and_its_presets(tmp_path: Path) -> None:
    stem = "sub-1_ses-M000"
    folder = "subjects/sub-1/ses-M000/"
    dti = "dwi/dti_based_processing"
    files = {
        "T1Linear": f"{folder}t1_linear/{stem}_{MNI}_desc-Crop_res-1x1x1_T1w.nii.gz",
        "T1LinearUncropped": f"{folder}t1_linear/{stem}_{MNI}_res-1x1x1_T1w.nii.gz",
        "flair-linear": f"{folder}flair_linear/{stem}_{MNI}_desc-Crop_res-1x1x1_FLAIR.nii.gz",
        "DwiDti": f"{folder}{dti}/normalized_space/{stem}_space-MNI152Lin_res-1x1x1_FA.nii.gz",
    }
    pets = {
        tracer: f"{folder}pet_linear/{stem}_trc-{tracer}_{MNI}_desc-Crop_res-1x1x1_suvr-pons2_pet.nii.gz"
        for tracer in ("18FFDG", "18FAV45")
    }
    native = f"{folder}{dti}/native_space/{stem}_space-T1w_MD.nii.gz"
    root = make_tree(tmp_path, [*files.values(), *pets.values(), native], DatasetType="derivative", CAPSVersion="1.0.0")
    tree = Tree(root)
    assert tree.is_caps

    def the_file(kind: FileType) -> str:
        (path,) = tree.find(kind)[0].values()
        return str(Path(path).relative_to(root))

    for preset, file in files.items():
        assert the_file(as_file_type(preset)) == file
    assert "2 files fit" in next(iter(tree.find(as_file_type("PetLinear"))[1].values()))
    assert the_file(pet_linear("18FAV45")) == pets["18FAV45"]
    assert the_file(as_file_type({"preset": "PetLinear", "with_entities": {"trc": "18FFDG"}})) == pets["18FFDG"]
    assert the_file(dwi_dti("MD", "native")) == native


def test_derivatives_are_trees_of_their_own(tmp_path: Path) -> None:
    make_tree(tmp_path, ["sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz"])
    make_tree(tmp_path / "derivatives/segmentation", ["sub-1/ses-1/anat/sub-1_ses-1_dseg.nii.gz"])
    tree = Tree(tmp_path)
    assert len(tree.find(as_file_type("Segmentation"))[0]) == 1
    with pytest.raises(DataError, match="there are: segmentation"):
        tree.find(FileType(suffix="dseg", pipeline="other"))


def test_tables_are_joined_by_participant_and_session(tmp_path: Path) -> None:
    names = [f"sub-{p}/ses-{s}/anat/sub-{p}_ses-{s}_T1w.nii.gz" for p in ("01", "02") for s in ("M0", "M6")]
    tree = make_tree(tmp_path, names)
    (tree / "participants.tsv").write_text("participant_id\tsex\tage\n01\tF\t70\nsub-02\tn/a\t80\n")
    (tree / "sub-01/sub-01_sessions.tsv").write_text("session_id\tage\tcdr\nM0\tn/a\t0\nses-M6\t70.5\t1\n")
    (tree / "sub-02/sub-02_sessions.tsv").write_text("session_id\tcdr\nses-M0\t2\nses-M18\t2\n")
    table = Tree(tree).table()
    assert table["session_id"].tolist() == ["ses-M0", "ses-M6", "ses-M0", "ses-M6", "ses-M18"]
    assert table["age"].tolist() == [70, 70.5, 80, 80, 80]
    assert table["sex"].fillna("?").tolist() == ["F", "F", "?", "?", "?"]
    assert table["cdr"].fillna(-1).tolist() == [0, 1, 2, -1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sub\tsex\n1\tF\n", "no column 'participant_id'"),
        ("participant_id\tsex\n\tF\n", "row 2: no participant_id"),
        ("participant_id\tsex\n1\tF\nsub-1\tM\n", "several rows, such as sub-1"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    make_tree(tmp_path, ["sub-1/anat/sub-1_T1w.nii"])
    (tmp_path / "participants.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        Tree(tmp_path).table()


def test_what_is_no_tree(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        Tree(tmp_path / "absent")
    with pytest.raises(DataError, match=r"dataset_description\.json"):
        Tree(tmp_path)
    make_tree(tmp_path, [])
    with pytest.raises(DataError, match="no folders sub-"):
        Tree(tmp_path)
    make_tree(tmp_path, [], CAPSVersion="1.0.0")
    with pytest.raises(DataError, match="folder 'subjects'"):
        Tree(tmp_path)


def test_file_types_that_cannot_be_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'T1Liner' \(did you mean 'T1Linear'\?\)"):
        as_file_type("T1Liner")
    with pytest.raises(ConfigError, match=r"masks\.sufix"):
        as_file_type({"sufix": "T1w"}, "masks")
    with pytest.raises(ConfigError, match="no regular expression"):
        as_file_type({"suffix": "T1w", "with_entities": {"run": "("}})


def test_tables_of_participants_may_differ_in_their_columns(tmp_path: Path) -> None:
    make_tree(tmp_path, [f"sub-{p}/ses-1/anat/sub-{p}_ses-1_T1w.nii" for p in "123"])
    (tmp_path / "sub-1/sub-1_sessions.tsv").write_text("session_id\tage\nses-1\t60\n")
    (tmp_path / "sub-2/sub-2_sessions.tsv").write_text("participant_id\tsession_id\tcdr\nsub-2\tses-1\t0.5\n\n")
    table = Tree(tmp_path).table()
    assert table["age"].fillna(-1).tolist() == [60, -1, -1] and table["cdr"].fillna(-1).tolist() == [-1, 0.5, -1]
    (tmp_path / "sub-3/sub-3_sessions.tsv").write_text("session\tage\nses-1\t60\n")
    with pytest.raises(DataError, match=r"sub-3_sessions\.tsv: there is no column 'session_id'"):
        Tree(tmp_path).table()
