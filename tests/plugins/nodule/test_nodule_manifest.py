"""The manifest refuses what would train wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medtrain.errors import DataError
from medtrain_plugins.imaging.volume import Volume
from medtrain_plugins.nodule.scans.manifest import ManifestRow, Nodule, read_manifest, write_manifest, write_prepared


def row(folder: Path, series: str, **more: Any) -> ManifestRow:
    volume = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4)[[2, 1, 0, 3]], series)
    image = folder / f"{series}.npy"
    values: dict[str, Any] = {
        "image": str(image),
        "checksum": write_prepared(image, volume),
        "series": series,
        "patient": series,
        "shape": volume.shape,
        "spacing": (1, 1, 1),
        "affine": tuple(map(tuple, volume.affine.tolist())),
    }
    return ManifestRow(**{**values, **more})


def test_rows_come_back_with_absolute_paths_and_mapped_voxels(tmp_path: Path) -> None:
    nodule = Nodule(id="a.csv:2", world=(3, 2, 1), voxel=(1, 2, 3), diameter_mm=4.5, malignancy=3)
    written = [row(tmp_path / "scans", "a", nodules=(nodule,), split="train"), row(tmp_path / "scans", "b", fold=2)]
    write_manifest(tmp_path / "manifest.jsonl", written)
    assert json.loads((tmp_path / "manifest.jsonl").read_text().splitlines()[0])["image"] == "scans/a.npy"
    read = read_manifest(tmp_path, verify=True)
    assert read == written
    assert read[0].open().tolist() == np.arange(24).reshape(2, 3, 4).tolist() and not read[0].open().flags.writeable
    assert read[0].geometry.to_voxel([[3, 2, 1]]).tolist() == [[1, 2, 3]]


def test_a_moved_folder_is_read_where_it_is(tmp_path: Path) -> None:
    write_manifest(tmp_path / "old" / "manifest.jsonl", [row(tmp_path / "old", "a")])
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_manifest(tmp_path / "new")[0].open().shape == (2, 3, 4)


def test_contradictions_are_named(tmp_path: Path) -> None:
    rows = [row(tmp_path, "a", patient="p", split="train"), row(tmp_path, "b", patient="p", split="test")]
    write_manifest(tmp_path / "manifest.jsonl", [*rows, rows[0]])
    with pytest.raises(DataError) as error:
        read_manifest(tmp_path)
    assert "patient p is on two sides" in str(error.value) and "series a is there more than once" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("nodules", [{"id": "x", "world": [1, 2], "voxel": [1, 2, 3]}], "manifest.jsonl:1: nodules.0.world"),
        ("nodules", [{"id": "x", "world": [1, 2, 3], "voxel": [1, 2, 3], "diameter_mm": -1}], "diameter_mm"),
        ("split", "training", "split"),
        ("affine", [[0, 0, 0, 0]] * 4, "invertible"),
        ("surprise", 1, "surprise"),
        ("image", "gone.npy", "gone.npy: no such file"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, key: str, value: Any, said: str) -> None:
    write_manifest(tmp_path / "manifest.jsonl", [row(tmp_path, "a")])
    told = json.loads((tmp_path / "manifest.jsonl").read_text())
    (tmp_path / "manifest.jsonl").write_text(json.dumps({**told, key: value}) + "\n")
    with pytest.raises(DataError, match=said):
        read_manifest(tmp_path)


def test_changed_images_are_found_out(tmp_path: Path) -> None:
    written = row(tmp_path, "a")
    write_manifest(tmp_path / "manifest.jsonl", [written])
    np.save(written.image, np.zeros((2, 3, 4), np.int16))
    read_manifest(tmp_path)
    with pytest.raises(DataError, match="checksum differs"):
        read_manifest(tmp_path, verify=True)
    np.save(written.image, np.zeros((2, 3, 5), np.int16))
    with pytest.raises(DataError, match="shape"):
        read_manifest(tmp_path)[0].open()


def test_no_manifest_and_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="medtrain data prepare nodule"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows"):
        read_manifest(tmp_path)
