"""`medtrain data prepare mammography`: DICOM files on disk, what is made of them and what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from dicom_files import breast, coded, mammogram, save
from medtrain.errors import DataError, UsageError
from medtrain_plugins.mammography.cohort.cohort import read_cohort
from medtrain_plugins.mammography.cohort.images import read_pixels
from medtrain_plugins.mammography.cohort.layouts import EMBED_NAME
from medtrain_plugins.mammography.commands.data import prepare as command
from medtrain_plugins.mammography.preparation.prepare import ImagePreparation, prepare
from medtrain_plugins.mammography.preparation.preprocess import model_image
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

SMALL = ImagePreparation(size=(48, 40))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "dicom"
    folder.mkdir()
    return folder


def made(source: Path, settings: ImagePreparation = SMALL, **arguments: object) -> dict:
    return prepare(source, source.parent / "png", settings, workers=1, **arguments)


def left_out(report: dict) -> dict[str, tuple[str, str]]:
    return {entry["source"]: (entry["kind"], entry["reason"]) for entry in report["left_out"]}


def exam(source: Path, patient: str = "101", day: str = "20150803") -> None:
    """Both breasts in both views."""
    for number, (side, view) in enumerate((s, v) for s in "LR" for v in ("CC", "MLO")):
        pixels = breast(number) if side == "L" else breast(number)[:, ::-1]
        dataset = mammogram(pixels, PatientID=patient, StudyDate=day, ImageLaterality=side, ViewPosition=view)
        save(dataset, source / patient / day / f"{side}{view}.dcm")


def test_an_exam_becomes_images_of_the_embed_layout(source):
    exam(source)
    report = made(source)
    out = source.parent / "png"
    assert report == json.loads((out / "preparation.json").read_text()) | {"settings": report["settings"]}
    assert report["counts"]["prepared"] == 4
    assert report["left_out"] == []
    seen = set()
    for entry in report["images"]:
        dataset = dcmread(source / entry["source"])
        match = EMBED_NAME.fullmatch(entry["file_name"])
        assert match is not None
        assert match.groups() == ("101", dataset.ImageLaterality, dataset.ViewPosition, "2015-08-03")
        expected = model_image(dataset.pixel_array.astype(np.float32), dataset.ImageLaterality, (48, 40))
        assert np.array_equal(read_pixels(out / entry["file_name"]), expected)
        assert entry["sop_instance"] == dataset.SOPInstanceUID
        seen.add(match.groups()[1:3])
    assert len(seen) == 4
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["preparation.json", *(entry["file_name"] for entry in report["images"])]
    )


@pytest.mark.parametrize("compression", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_files_give_the_same_image(source, compression):
    uid = generate_uid()
    save(mammogram(SOPInstanceUID=uid), source / "a.dcm")
    plain = made(source)["images"][0]["file_name"]
    before = (source.parent / "png" / plain).read_bytes()
    save(mammogram(SOPInstanceUID=uid), source / "a.dcm", compression)
    report = made(source, overwrite=True)
    assert report["counts"]["prepared"] == 1
    assert (source.parent / "png" / plain).read_bytes() == before


CC, MLO = coded("399162004"), coded("399368009")
DISPLACED = coded("399209000", "Implant Displaced")
REFUSED = {
    "not a mammogram": [{"Modality": "SR"}, {"Modality": None}],
    "tomosynthesis": [
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.3", "NumberOfFrames": 60},
        {"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "TOMO_PROJ"]},
    ],
    "multi-frame": [{"NumberOfFrames": 2}],
    "no pixel data": [{"PixelData": None}, {"Rows": None}],
    "not grayscale": [{"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, {"PhotometricInterpretation": None}],
    "not for presentation": [
        {"PresentationIntentType": "FOR PROCESSING"},
        {"PresentationIntentType": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2.1"},
        {"PresentationIntentType": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
    ],
    "implant": [
        {"BreastImplantPresent": "YES"},
        {"ViewModifierCodeSequence": [DISPLACED]},
        {"ViewCodeSequence": [coded("399162004", ViewModifierCodeSequence=[DISPLACED])]},
    ],
    "special view": [{"PartialView": "YES"}, {"ViewModifierCodeSequence": [coded("399163009", "Magnification")]}],
    "unknown laterality": [{"ImageLaterality": "B"}, {"ImageLaterality": None}],
    "unknown view": [
        {"ViewPosition": "ML"},
        {"ViewPosition": None},
        {"ViewPosition": "MLO", "ViewCodeSequence": [CC]},
        {"ViewPosition": None, "ViewCodeSequence": [CC, MLO]},
    ],
    "no patient": [{"PatientID": None}, {"PatientID": ""}],
    "no date": [{"StudyDate": None}],
    "unusable name": [{"PatientID": "A-17"}],
    "flat image": [{"PixelData": np.full((96, 64), 9, np.uint16).tobytes()}],
}


def test_what_cannot_be_used_is_left_out_with_the_reason(source):
    save(mammogram(), source / "good.dcm")
    expected = {}
    for kind, spoilt in REFUSED.items():
        for number, tags in enumerate(spoilt):
            path = save(mammogram(**tags), source / kind / f"{number}.dcm")
            expected[path.relative_to(source).as_posix()] = kind
    report = made(source)
    found = left_out(report)
    assert {label: kind for label, (kind, _) in found.items()} == expected
    assert found["tomosynthesis/1.dcm"][1].startswith("ImageType is DERIVED/PRIMARY/TOMOSYNTHESIS/GENERATED_2D")
    assert found["implant/0.dcm"][1] == "BreastImplantPresent is YES"
    assert found["special view/1.dcm"][1] == "CC with Magnification"
    assert found["unknown laterality/0.dcm"][1] == "ImageLaterality is B, not L or R"
    assert report["counts"]["prepared"] == 1
    assert report["counts"]["left_out"] == {kind: len(spoilt) for kind, spoilt in sorted(REFUSED.items())}


def test_implants_and_unstated_intent_are_taken_on_request(source):
    save(mammogram(BreastImplantPresent="YES"), source / "a.dcm")
    save(mammogram(ViewCodeSequence=[coded("R-10242", ViewModifierCodeSequence=[DISPLACED])]), source / "b.dcm")
    save(mammogram(PresentationIntentType=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), source / "c.dcm")
    save(mammogram(PresentationIntentType="FOR PROCESSING"), source / "d.dcm")
    report = made(source, ImagePreparation((48, 40), implants=True, unstated_intent=True))
    assert report["counts"]["prepared"] == 3
    assert set(left_out(report)) == {"d.dcm"}


def test_intent_view_and_side_are_read_where_else_they_stand(source):
    tags = {"PresentationIntentType": None, "ViewPosition": None, "ImageLaterality": None}
    save(mammogram(**tags, Laterality="R", ViewCodeSequence=[MLO]), source / "a")
    assert made(source)["images"][0]["file_name"].startswith("101_R_MLO_2015-08-03_")


@pytest.mark.parametrize("compression", [None, JPEG2000Lossless])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_truncated_files_are_refused(source, compression, part):
    save(mammogram(), source / "good.dcm")
    cut = save(mammogram(), source / "cut.dcm", compression)
    whole = cut.read_bytes()
    cut.write_bytes(whole[: int(len(whole) * part)])
    report = made(source)
    assert report["counts"]["prepared"] == 1
    assert left_out(report)["cut.dcm"][0] in {"unreadable file", "not a mammogram", "no pixel data"}


def test_files_that_are_not_dicom(source):
    save(mammogram(), source / "IM0001")  # no extension
    (source / "notes.txt").write_text("hello")
    (source / "._a.dcm").write_bytes(b"finder")
    (source / "text.dcm").write_text("not one")
    os.mkfifo(source / "pipe.dcm")
    report = made(source)
    assert left_out(report) == {"text.dcm": ("unreadable file", "not a DICOM file: it lacks the mark DICM")}
    assert (report["counts"]["prepared"], report["counts"]["other_files"]) == (1, 3)


def test_two_images_of_one_view_are_both_kept_and_copies_are_not(source):
    first = save(mammogram(), source / "a.dcm")
    save(mammogram(breast(1)), source / "b.dcm")
    (source / "copy").mkdir()
    (source / "copy" / "a.dcm").write_bytes(first.read_bytes())
    report = made(source)
    assert report["counts"]["prepared"] == 2
    name = report["images"][0]["file_name"]
    assert left_out(report) == {"copy/a.dcm": ("duplicate", f"{name} is the name of a.dcm as well")}


def test_a_table_names_exams_patients_and_dates(source):
    for folder in ("e1", "e2", "e3", "e4", "not listed"):
        exam(source / folder, "SECRET", "19000101")
    (source / "e5").mkdir()
    table = source.parent / "exams.csv"
    table.write_text(
        "inviv;pid;scr_date\ne1;7.0;2012-03-04\ne1;7;20120304\ne2;8;soon\ne3;9;2014-01-01\ne3;9;2015-01-01\n"
        "e4;;2014-01-01\ne5;9;2014-01-01\ne6;9;2014-01-01\n../dicom/e1;9;2014-01-01\n"
    )
    report = made(source, table=table)
    assert {entry["file_name"][:-17] for entry in report["images"]} == {
        f"7_{side}_{view}_2012-03-04" for side in "LR" for view in ("CC", "MLO")
    }
    assert {label: kind for label, (kind, _) in left_out(report).items()} == {
        "exams.csv:4": "no date",
        "exams.csv:5": "contradictory rows",
        "exams.csv:6": "contradictory rows",
        "exams.csv:7": "no patient",
        "exams.csv:8": "exam without images",
        "exams.csv:9": "exam without folder",
        "exams.csv:10": "no exam",
    }


def test_a_file_of_two_exams_is_left_out(source):
    exam(source / "e1")
    save(mammogram(), source / "e1" / "prior" / "a.dcm")
    table = source.parent / "exams.csv"
    table.write_text("exam,patient,date\ne1,7,2012-03-04\ne1/prior,7,2010-03-04\n")
    report = made(source, table=table)
    assert report["counts"]["prepared"] == 4
    assert left_out(report) == {
        "e1/prior/a.dcm": ("file of two exams", "it lies in the folders of e1 and e1/prior"),
    }


def test_other_column_names(source):
    exam(source / "e1")
    table = source.parent / "exams.csv"
    table.write_text("folder,woman,date\ne1,7,2012-03-04\n")
    with pytest.raises(DataError, match=r"no column inviv or exam_id or exam.*--exam-column"):
        made(source, table=table)
    report = made(source, table=table, columns={"exam": "folder", "patient": "woman"})
    assert report["counts"]["prepared"] == 4


def test_what_is_there_stays_unless_it_is_damaged_or_overwritten(source):
    exam(source)
    names = [entry["file_name"] for entry in made(source)["images"]]
    out = source.parent / "png"
    whole = (out / names[1]).read_bytes()
    (out / names[1]).write_bytes(whole[:-20])
    kept = (out / names[0]).stat().st_mtime_ns
    report = made(source)
    assert (report["counts"]["prepared"], report["counts"]["existing"]) == (1, 3)
    assert (out / names[1]).read_bytes() == whole
    assert (out / names[0]).stat().st_mtime_ns == kept
    assert made(source, overwrite=True)["counts"]["prepared"] == 4


def test_a_dry_run_writes_nothing(source):
    exam(source)
    report = made(source, dry_run=True)
    assert report["counts"]["planned"] == 4
    assert not (source.parent / "png").exists()


def test_images_made_in_two_ways_do_not_mix(source):
    exam(source)
    made(source)
    with pytest.raises(UsageError, match=r"size = \[48, 40\], not \[64, 40\]"):
        made(source, ImagePreparation((64, 40)))
    (source.parent / "png" / "preparation.json").write_text('{"settings": [1]}')
    with pytest.raises(UsageError, match="not a report"):
        made(source)


def test_images_of_another_source_are_counted(source):
    exam(source)
    made(source)
    (source / "101" / "20150803" / "LCC.dcm").unlink()
    assert made(source)["counts"]["further_images"] == 1


def test_several_processes_give_the_same_files_and_report(source):
    for patient in ("101", "102", "103"):
        exam(source, patient)
    save(mammogram(Modality="CT"), source / "ct.dcm")
    reports = [prepare(source, source.parent / f"png{n}", SMALL, workers=n) for n in (1, 3)]
    assert reports[0] == reports[1]
    first, second = ({p.name: p.read_bytes() for p in (source.parent / f"png{n}").iterdir()} for n in (1, 3))
    assert first == second
    assert len(first) == 13


def test_a_job_without_one_image_is_an_error(source):
    with pytest.raises(DataError, match="there are no DICOM files"):
        made(source)
    save(mammogram(Modality="CT"), source / "ct.dcm")
    with pytest.raises(DataError, match=r"not one mammogram.*\n.*not a mammogram: 1.*Modality is CT"):
        made(source)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{pacient}_{suffix}.png", "did you mean 'patient'"),
        ("{}_{suffix}.png", "not a template"),
        ("{patient}.png", "lacks {suffix}"),
        ("{suffix}.jpg", "must end in .png"),
        ("{laterality}/{suffix}.png", "not a path"),
    ],
)
def test_templates_of_names_are_checked_first(source, name, message):
    with pytest.raises(UsageError, match=message):
        made(source, ImagePreparation(name=name))


def test_patients_are_named_as_they_are_written(source):
    save(mammogram(PatientID="ab"), source / "a.dcm")
    save(mammogram(PatientID="AB"), source / "b.dcm")
    save(mammogram(PatientID="../ab"), source / "c.dcm")
    report = made(source, ImagePreparation((48, 40), name="{patient}_{exam}_{suffix}.png"))
    assert {entry["file_name"][:10] for entry in report["images"]} == {"ab_1.2.3.4", "AB_1.2.3.4"}
    assert left_out(report)["c.dcm"][0] == "unusable name"


SIZE = ("--height", 48, "--width", 40)


def test_the_command_makes_a_cohort_that_can_be_read(medtrain, tmp_path):
    source = tmp_path / "dicom"
    lines = ["patient_id,ImageLateralityFinal,view,study_date_anon,Time_to_Cancer_Years,years_last_followup"]
    for patient in ("101", "102"):
        for day in ("20150803", "20170105"):
            exam(source, patient, day)
            date = f"{day[:4]}-{day[4:6]}-{day[6:]}"
            lines += [f"{patient},{side},{view},{date},,5" for side in "LR" for view in ("CC", "MLO")]
    save(mammogram(NumberOfFrames=3, ViewPosition="CC"), source / "tomo.dcm")
    (source / "readme.txt").write_text("x")
    done = medtrain("data", "prepare", "mammography", "--source", "dicom", "--out", "png", *SIZE, "--workers", 2)
    assert done.stdout.splitlines() == [
        "16 images prepared (48 x 40 pixels), 0 there already, 1 left out: png",
        "  - multi-frame: 1, first: tomo.dcm (3 frames)",
        "1 other files in dicom are not DICOM.",
    ]
    assert done.stderr == ""
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    assert read_cohort(tmp_path / "cohort.csv", tmp_path / "png").about["images"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--threshold", "300"], "0..254 nor 'otsu'"), (["--exam-column", "x"], "columns of a --table")],
)
def test_options_are_checked(source, arguments, message):
    result = CliRunner().invoke(command, ["--source", str(source), "--out", str(source / "out"), *arguments])
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("how", [pytest.param(signal.SIGKILL, marks=pytest.mark.acceptance), signal.SIGINT])
def test_an_interrupted_job_goes_on_where_it_was(medtrain, wait_for, tmp_path, how):
    for patient in range(101, 131):
        exam(tmp_path / "dicom", str(patient))
    out = tmp_path / "png"
    arguments = ("--source", "dicom", "--out", "png", "--workers", 2, "--height", 1024, "--width", 832)
    job = medtrain.start("data", "prepare", "mammography", *arguments)
    wait_for(lambda: len(list(out.glob("*.png"))) or job.poll() is not None)
    job.send_signal(how)  # to the parent alone: its processes must not go on
    _, errors = job.communicate(timeout=30)
    assert job.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in errors
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert 1 <= len(there) < 120
    assert all(read_pixels(out / name).shape == (1024, 832) for name in there)
    assert json.loads((out / "preparation.json").read_text())["state"] == "running"
    report = prepare(tmp_path / "dicom", out, ImagePreparation((1024, 832)), workers=2)
    assert len(report["images"]) == 120
    assert report["counts"]["existing"] == len(there)
    assert all((out / name).stat().st_mtime_ns == before for name, before in there.items())
