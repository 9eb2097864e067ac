"""Landmarks from recordings: finding frames and videos, and putting a frame together. MediaPipe itself is not run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from medtrain.errors import ConfigError, DataError, UsageError
from medtrain_plugins.sign.data.extract import (
    MediaPipeDetector,
    extract,
    extractor,
    find_recordings,
    frame_of,
    model_files,
)
from medtrain_plugins.sign.data.formats import open_clips
from medtrain_plugins.sign.data.landmarks import FACE, POSE, adjust
from medtrain_plugins.sign.data.prepare import Wanted, store
from PIL import Image


def record(folder: Path, gray: int, count: int = 3) -> None:
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        Image.new("RGB", (8, 8), (gray, number, 0)).save(folder / f"{folder.name}_{number:04d}.png")


class Brightness:
    """A detector whose landmarks say what it saw."""

    def __call__(self, image: Any) -> Any:
        frame = np.ones((184, 4))
        frame[:, 0] = image[..., 0].mean() / 255
        frame[:, 1] = np.arange(184) / 184
        frame[:, 2] = image[..., 1].mean()
        return frame


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    for number, (signer, split, sign) in enumerate(
        (("01", "train", "0001"), ("01", "test", "0001"), ("02", "train", "0070"))
    ):
        record(tmp_path / "karsl-502" / signer / signer / split / sign / f"clip_{number}_c", 50 * number)
    return tmp_path


def test_recordings_are_found_and_chosen(recordings: Path, tmp_path: Path) -> None:
    found = find_recordings(recordings, Wanted())
    assert [(r.clip, r.sign, r.signer, r.split) for r in found] == [
        ("clip_0_c", 1, 1, "train"),
        ("clip_1_c", 1, 1, "test"),
        ("clip_2_c", 70, 2, "train"),
    ]
    assert len(find_recordings(recordings, Wanted(signs=[70]))) == 1
    video = tmp_path / "videos" / "03" / "test" / "0502" / "clip.mp4"
    video.parent.mkdir(parents=True)
    video.touch()
    assert find_recordings(tmp_path / "videos", Wanted())[0].path == video
    with pytest.raises(DataError, match="no recordings"):
        find_recordings(recordings, Wanted(signers=[3]))


@pytest.mark.parametrize("workers", [1, 2])
def test_recordings_become_a_dataset(recordings: Path, tmp_path: Path, workers: int, caplog: Any) -> None:
    broken = recordings / "karsl-502" / "01" / "01" / "train" / "0001" / "clip_0_c" / "clip_0_c_0002.png"
    broken.write_bytes(b"not an image")
    made = extract(find_recordings(recordings, Wanted()), Brightness, workers)
    index = store(made, {"extractor": extractor(2)}, tmp_path / "own", adjusted=True)
    assert index["length"].tolist() == [2, 3, 3]
    opened = open_clips(tmp_path / "own")
    assert opened.about["extractor"] == "mediapipe-tasks/2-hands"
    raw = np.stack([Brightness()(np.full((8, 8, 3), (50, number, 0))) for number in (1, 2, 3)])
    assert opened.read(1) == pytest.approx(adjust(raw).astype(np.float32))
    if workers == 1:
        assert "1 of 3 frames cannot be decoded" in caplog.text


def points(count: int, base: float) -> list[Any]:
    return [SimpleNamespace(x=base + i, y=i / 10, z=-i, visibility=0.25) for i in range(count)]


def test_a_frame_takes_its_landmarks_from_the_right_places() -> None:
    frame = frame_of(points(33, 1000), points(478, 2000), [("Left", 0.9, points(21, 3000))])
    assert frame[:6, 0].tolist() == [1000 + i for i in POSE] and (frame[:6, 3] == 0.25).all()
    assert frame[6:142, 0].tolist() == [2000 + i for i in FACE] and (frame[6:142, 3] == 1).all()
    assert not frame[142:163].any()
    assert frame[163:, 0].tolist() == [3000 + i for i in range(21)]
    assert not frame_of(None, None, []).any()


def test_of_two_hands_with_one_label_the_surer_counts() -> None:
    for order in (1, -1):
        hands = [("Right", 0.9, points(21, 1)), ("Right", 0.6, points(21, 500))][::order]
        assert frame_of(None, None, hands)[142, 0] == 1
    both = frame_of(None, None, [("Right", 0.6, points(21, 5)), ("Left", 0.9, points(21, 7))])
    assert (both[142, 0], both[163, 0]) == (5, 7)


def test_missing_models_and_a_missing_package_are_named(tmp_path: Path) -> None:
    (tmp_path / "pose_landmarker_full.task").touch()
    with pytest.raises(ConfigError, match=r"no face_landmarker\*\.task, no hand_landmarker"):
        model_files(tmp_path)
    for name in ("face", "hand"):
        (tmp_path / f"{name}_landmarker.task").touch()
    assert model_files(tmp_path)["pose_landmarker"].name == "pose_landmarker_full.task"
    try:
        import mediapipe  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match=r"pip install 'medtrain\[karsl-extract\]'"):
            MediaPipeDetector(tmp_path)
