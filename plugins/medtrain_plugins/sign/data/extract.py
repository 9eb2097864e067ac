"""Landmarks from recordings, by MediaPipe: folders of frames, or videos.

    <source>[/karsl-502]/<signer>[/<signer>]/<train|test>/<sign>/<clip>/<frame>.jpg
    <source>[/karsl-502]/<signer>[/<signer>]/<train|test>/<sign>/<clip>.mp4

Both hands are detected. Published keypoints have at most one hand per frame, which loses a hand of signs that need two.
Such keypoints are another version of the data (`hands=1`); the container records the version.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from medtrain.errors import ConfigError, DataError, UsageError

from medtrain_plugins.sign.data.container import Clip
from medtrain_plugins.sign.data.landmarks import CHANNELS, FACE, GROUPS, HAND_LANDMARKS, LANDMARKS, POSE, Frames
from medtrain_plugins.sign.data.prepare import Wanted

log = logging.getLogger("medtrain")

Image = npt.NDArray[np.uint8]
IMAGES = (".jpg", ".jpeg", ".png", ".bmp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")
MODELS = ("pose_landmarker", "face_landmarker", "hand_landmarker")


@dataclass(frozen=True)
class Recording:
    """One clip's frames: a folder of images, or a video."""

    clip: str
    sign: int
    signer: int
    split: str
    path: Path


class Detector(Protocol):
    """Finds the landmarks of an image (H, W, 3) uint8 RGB: one frame (184, 4), see `frame_of`."""

    def __call__(self, image: Image) -> Frames: ...


def find_recordings(source: Path, wanted: Wanted) -> list[Recording]:
    """The recordings in a folder, by signer, split and sign; raises DataError when there are none."""
    base = source / "karsl-502" if (source / "karsl-502").is_dir() else source
    found = []
    for folder in sorted(path for path in base.glob("*") if path.is_dir() and path.name.isdecimal()):
        signer = folder.name
        folder = folder / signer if (folder / signer).is_dir() else folder
        for split in ("train", "test"):
            for sign in sorted(path for path in (folder / split).glob("*") if path.name.isdecimal()):
                if wanted(int(sign.name), int(signer), split):
                    found += [
                        Recording(path.stem if path.is_file() else path.name, int(sign.name), int(signer), split, path)
                        for path in sorted(sign.iterdir())
                        if path.is_dir() or path.suffix.lower() in VIDEOS
                    ]
    if not found:
        raise DataError(
            f"{source}: no recordings such as 01/01/train/0001/<clip>/<frame>.jpg or 01/train/0001/<clip>.mp4 "
            "of the chosen signs and signers"
        )
    return found


def extract(
    recordings: Sequence[Recording], make_detector: Callable[[], Detector], workers: int | None = None
) -> Iterator[Clip]:
    """The clips of recordings, in their order. make_detector: called once in each of `workers` processes.

    Frames that cannot be decoded are skipped and reported.
    """
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        detector = make_detector()
        for recording in recordings:
            yield _extract_one(detector, recording)
        return
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(make_detector,)) as pool:
        yield from pool.map(_extract_here, recordings, chunksize=4)


_detector: Detector | None = None


def _start(make_detector: Callable[[], Detector]) -> None:
    global _detector
    _detector = make_detector()


def _extract_here(recording: Recording) -> Clip:
    assert _detector is not None
    return _extract_one(_detector, recording)


def _extract_one(detector: Detector, recording: Recording) -> Clip:
    images = images_of(recording.path)
    frames = [detector(image) for image in images if image is not None]
    if unread := sum(image is None for image in images):
        log.warning("%s: %d of %d frames cannot be decoded and are skipped", recording.path, unread, len(images))
    packed = np.stack(frames) if frames else np.zeros((0, LANDMARKS, CHANNELS))
    return Clip(recording.clip, recording.sign, recording.signer, recording.split, packed)


def images_of(path: Path) -> list[Image | None]:
    """The frames of a recording as RGB, None for those that cannot be decoded; images in the order of their names."""
    if path.is_dir():
        return [_read_image(file) for file in sorted(path.iterdir()) if file.suffix.lower() in IMAGES]
    try:
        import cv2
    except ImportError:
        raise _not_installed("cv2") from None
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise DataError(f"{path}: cannot be opened as a video")
    frames: list[Image | None] = []
    while (read := video.read())[0]:
        frames.append(np.asarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), dtype=np.uint8))
    video.release()
    return frames


def _read_image(path: Path) -> Image | None:
    from PIL import Image as PillowImage

    try:
        with PillowImage.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError:
        return None


def frame_of(pose: Any, face: Any, hands: Sequence[tuple[str, float, Any]]) -> Frames:
    """One frame (184, 4) from the results of the three landmarkers.

    pose: 33 points with x, y, z, visibility, or None. face: 478 points, or None. hands: the detector's handedness
    ("Left", "Right"), its score, and 21 points, of each hand; of two with the same label, the one with the higher score
    is used.
    """
    frame = np.zeros((LANDMARKS, CHANNELS))
    if pose is not None:
        frame[GROUPS["pose"]] = [(p.x, p.y, p.z, p.visibility) for p in (pose[i] for i in POSE)]
    if face is not None:
        frame[GROUPS["face"]] = [(p.x, p.y, p.z, 1) for p in (face[i] for i in FACE)]
    for side, _, points in sorted(hands, key=lambda hand: hand[1]):
        rows = GROUPS["lh" if side.lower() == "left" else "rh"]
        frame[rows] = [(p.x, p.y, p.z, 1) for p in points[:HAND_LANDMARKS]]
    return frame


class MediaPipeDetector:
    """MediaPipe's landmarkers for pose, face and hands on single images, without tracking.

    models: folder with one `.task` file of each, with MediaPipe's names (pose_landmarker_full.task, ...). hands:
    largest number in a frame. Raises UsageError without MediaPipe, ConfigError for missing files.
    """

    def __init__(self, models: Path, hands: int = 2) -> None:
        files = model_files(models)
        try:
            import mediapipe
        except ImportError:
            raise _not_installed("mediapipe") from None
        self.mediapipe = mediapipe
        vision = self.mediapipe.tasks.vision
        base = {name: self.mediapipe.tasks.BaseOptions(model_asset_path=str(path)) for name, path in files.items()}
        self.pose = vision.PoseLandmarker.create_from_options(
            vision.PoseLandmarkerOptions(base_options=base["pose_landmarker"])
        )
        self.face = vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(base_options=base["face_landmarker"], num_faces=1)
        )
        self.hand = vision.HandLandmarker.create_from_options(
            vision.HandLandmarkerOptions(base_options=base["hand_landmarker"], num_hands=hands)
        )

    def __call__(self, image: Image) -> Frames:
        seen = self.mediapipe.Image(image_format=self.mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))
        pose, face, hand = (model.detect(seen) for model in (self.pose, self.face, self.hand))
        hands = [
            (labels[0].category_name, labels[0].score, points)
            for labels, points in zip(hand.handedness, hand.hand_landmarks, strict=True)
        ]
        return frame_of(next(iter(pose.pose_landmarks), None), next(iter(face.face_landmarks), None), hands)


def model_files(folder: Path) -> dict[str, Path]:
    """The three task files in a folder; raises ConfigError naming missing ones."""
    found = {name: sorted(folder.glob(f"{name}*.task")) for name in MODELS}
    if missing := [name for name, paths in found.items() if not paths]:
        raise ConfigError(
            f"--models {folder}: there is no {', no '.join(f'{name}*.task' for name in missing)}; MediaPipe publishes "
            "these files with its landmarkers, its Python package does not contain them"
        )
    return {name: paths[0] for name, paths in found.items()}


def extractor(hands: int) -> str:
    """The version of the data that this module makes."""
    return f"mediapipe-tasks/{hands}-hand{'s' if hands > 1 else ''}"


def _not_installed(module: str) -> UsageError:
    return UsageError(
        f"recordings need {module}, which is not installed: python -m pip install 'medtrain[karsl-extract]'"
    )
