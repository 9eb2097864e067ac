"""Detections on disk: JSON and its schema, CSV, NIfTI in the geometry of the scan, pictures, no identifiers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from found_scans import Toy, found_in, scan_in
from medtrain.errors import MedtrainError
from medtrain_plugins.nodule.annotations.properties import sphere_box
from medtrain_plugins.nodule.inference.detections import DetectionsDocument, json_schema, summarize, write_detections
from medtrain_plugins.nodule.inference.peaks import Candidate
from medtrain_plugins.nodule.inference.predict import DetectedScan, LocatedCandidate
from medtrain_plugins.nodule.scans.volume import read_volume

GOLDEN = Path(__file__).parents[2] / "golden" / "nodule_inference.json"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> DetectedScan:
    return found_in(scan_in("dicom", tmp_path_factory.mktemp("scan")))


def written(found: DetectedScan, out: Path, **settings: Any) -> dict[str, Any]:
    write_detections(found, out, **settings)
    document: dict[str, Any] = json.loads((out / "detections.json").read_text())
    return document


def test_the_document_says_what_was_found(found: DetectedScan, tmp_path: Path) -> None:
    document = written(found, tmp_path)
    assert (document["schema"], document["version"]) == ("medtrain-nodule-detections", 1)
    assert document["scan"]["series"] == "1.2.3" and not document["scan"]["deidentified"]
    assert document["scan"]["shape"] == [40, 48, 56]
    assert document["scan"]["path"].endswith("series")
    first, finding = document["candidates"][0], found.findings[0]
    assert first["world"] == pytest.approx(finding.world)
    assert first["confidence"] == finding.candidate.confidence
    assert first["volume_mm3"] == pytest.approx(np.pi * 8**3 / 6)
    assert first["triage"]["score"] == pytest.approx(1 + 9 * first["triage"]["probability"])
    assert first["properties"]["centre_world"] == pytest.approx(finding.world, abs=1.0)
    assert document["settings"]["window_hu"] == [-1000, 400]
    assert document["summary"]["num_detections"] == 2
    assert "no medical finding" in document["limits"]
    (z0, z1), _, (x0, x1) = first["box"]
    assert z0 <= finding.voxel[0] < z1 and x0 <= finding.voxel[2] < x1
    assert sorted(document["files"]) == sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".json")
    DetectionsDocument.model_validate(document)


def test_the_schema_lies_beside_it_and_describes_it(found: DetectedScan, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    document = written(found, tmp_path)
    schema = json.loads((tmp_path / "detections.schema.json").read_text())
    assert schema == json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    document["candidates"][0]["confidence"] = 1.2
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


def test_the_golden_format() -> None:
    (case,) = (case for case in json.loads(GOLDEN.read_text()) if case["group"] == "formatter")
    given, wanted = case["inputs"], case["expected"]
    candidates = [
        Candidate(tuple(centre), score, (size,) * 3, (triage,))
        for centre, score, size, triage in zip(
            given["centers"], given["confidences"], given["diameters"], given["triage"], strict=True
        )
        if score >= case["params"]["min_confidence"]
    ]
    candidates.sort(key=lambda one: -one.confidence)
    findings = tuple(
        LocatedCandidate(number, one, (0, 0, 0), one.zyx, (0, 0, 0)) for number, one in enumerate(candidates, start=1)
    )
    assert summarize(findings) == wanted["summary"]
    for finding, expected in zip(findings, wanted["detections"], strict=True):
        assert finding.voxel == tuple(expected["center"])
        assert finding.volume_mm3 == pytest.approx(expected["volume_mm3"], abs=case["atol"])
        box = sphere_box(finding.voxel, expected["diameter_mm"], given["spacing_zyx"], given["shape"])
        # Half-open here, with its last voxels there.
        assert [low for low, _ in box] == expected["bbox_min"]
        assert [high - 1 for _, high in box] == expected["bbox_max"]


@pytest.mark.parametrize("kind", ["mhd", "flipped", "nifti", "dicom"])
def test_images_have_the_geometry_of_the_scan(kind: str, tmp_path: Path) -> None:
    scan = scan_in(kind, tmp_path)
    found = found_in(scan)
    write_detections(found, tmp_path / "out", panels=0)
    heatmap, mask = (nibabel.load(tmp_path / "out" / f"{name}.nii.gz") for name in ("heatmap", "mask"))
    if kind == "nifti":
        original = nibabel.load(scan)
        assert heatmap.shape == original.shape
        np.testing.assert_allclose(heatmap.affine, original.affine, atol=1e-4)
    elif kind != "dicom":
        image = sitk.ReadImage(str(scan))
        assert heatmap.shape == image.GetSize()
        corner = np.array(image.TransformIndexToPhysicalPoint((5, 6, 7)))
        np.testing.assert_allclose((heatmap.affine @ [5, 6, 7, 1])[:3], corner * [-1, -1, 1], atol=1e-4)
    assert heatmap.get_data_dtype() == np.float32 and mask.get_data_dtype() == np.int16
    values, labels = np.asarray(heatmap.dataobj), np.asarray(mask.dataobj)
    for finding in found.findings:
        at = tuple(round(n) for n in finding.index)
        assert values[at] > 0.5 and labels[at] == finding.number
    # Read back by the program itself, the map lies on the scan.
    again = read_volume(tmp_path / "out" / "heatmap.nii.gz")
    peak = np.unravel_index(int(again.array.argmax()), again.shape)
    assert np.linalg.norm(again.to_world([peak])[0] - found.findings[0].world) < 2.0
    np.testing.assert_allclose(again.affine, found.volume.affine, atol=1e-4)


def test_maps_at_stride_two_lie_on_the_scan(tmp_path: Path) -> None:
    class Half(Toy):
        output_stride = 2

        def forward(self, image: Any) -> Any:
            import torch

            found = super().forward(image)
            return found._replace(
                **{
                    name: torch.nn.functional.avg_pool3d(getattr(found, name), 2)
                    for name in ("heatmap", "log_diameter", "triage")
                }
            )

    scan = scan_in("mhd", tmp_path)
    found = found_in(scan, Half())
    heatmap = found.on_input(found.maps["heatmap"][0].numpy())
    assert heatmap.shape == found.volume.shape
    peak = np.array(np.unravel_index(int(heatmap.argmax()), heatmap.shape))
    assert np.abs(peak - found.findings[0].voxel).max() < 2.5
    whole = found_in(scan)
    assert np.linalg.norm(np.array(found.findings[0].world) - whole.findings[0].world) < 1.0


def test_identifiers_can_be_left_out(found: DetectedScan, tmp_path: Path) -> None:
    document = written(found, tmp_path, deidentify=True)
    assert document["scan"]["deidentified"] and document["scan"]["path"] is None
    assert document["scan"]["series"].startswith("2.25.") and document["scan"]["patient"].startswith("2.25.")
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert b"1.2.3" not in content and str(found.volume.provenance["path"]).encode() not in content
    other = written(found, tmp_path / "again", deidentify=True)
    assert other["scan"]["series"] != document["scan"]["series"]


def test_pictures_and_images_are_optional(found: DetectedScan, tmp_path: Path) -> None:
    names = {path.name for path in write_detections(found, tmp_path / "a", panels=1)}
    assert {"candidates_overview.png", "candidates_nodule1.png", "heatmap.nii.gz", "mask.nii.gz"} <= names
    assert "candidates_nodule2.png" not in names
    assert (tmp_path / "a" / "candidates_nodule1.png").read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in write_detections(found, tmp_path / "b", panels=0, heatmap=False)}
    assert names == {"candidates.csv", "mask.nii.gz", "detections.json", "detections.schema.json"}


def test_nothing_is_pickled(found: DetectedScan, tmp_path: Path) -> None:
    write_detections(found, tmp_path)
    assert {"".join(path.suffixes[-2:]) for path in tmp_path.iterdir()} <= {
        ".csv",
        ".json",
        ".schema.json",
        ".nii.gz",
        ".png",
    }


def test_a_folder_that_cannot_be_is_named(found: DetectedScan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MedtrainError, match="file"):
        write_detections(found, tmp_path / "file" / "out")
