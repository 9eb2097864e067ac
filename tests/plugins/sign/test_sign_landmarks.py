"""The landmarks of a frame: groups, mirror image, centring and scaling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from keypoint_files import frames, lose
from medtrain_plugins.sign.data.landmarks import ANCHORS, FACE, GROUPS, MIRROR, adjust, normalisation_of

REAL_MAP = Path(__file__).parents[4] / "shared" / "data" / "karsl" / "face_mesh_symmetry_map.npy"


def test_the_groups_fill_a_frame_and_the_mirror_is_its_own_inverse() -> None:
    assert [rows.stop - rows.start for rows in GROUPS.values()] == [6, 136, 21, 21]
    assert FACE[1] == 7 and len(FACE) == 136 and list(FACE) == sorted(set(FACE))
    mirror = np.array(MIRROR)
    assert (mirror[mirror] == np.arange(184)).all()
    assert (mirror == np.arange(184)).sum() == 6  # the middle of the face
    assert MIRROR[:6] == (1, 0, 3, 2, 5, 4) and MIRROR[142] == 163


@pytest.mark.skipif(not REAL_MAP.is_file(), reason="the symmetry map of the face mesh is not here")
def test_the_mirror_of_the_face_is_that_of_the_mesh() -> None:
    symmetry = np.load(REAL_MAP)
    assert [FACE[MIRROR[6 + row] - 6] for row in range(136)] == symmetry[list(FACE)].tolist()


def test_adjusting_centres_and_scales_each_detected_group() -> None:
    raw = lose(frames(4, adjusted=False), "lh", [1, 2])
    raw[..., 3] *= 0.7
    done = adjust(raw)
    assert (done[:, list(ANCHORS.values()), :3] == 0).all()
    assert (done[..., 3] == raw[..., 3]).all()
    assert (done[[1, 2], GROUPS["lh"]] == 0).all() and (done[0, 164:, :3] != 0).all()
    # Shoulders are one apart; so are the bases of thumb and little finger.
    assert np.linalg.norm(done[:, 1, :2], axis=1) == pytest.approx(1, rel=1e-5)
    assert np.linalg.norm(done[:, 144, :2] - done[:, 159, :2], axis=1) == pytest.approx(1, rel=1e-5)
    hand = raw[0, 142:163, :3]
    scale = np.linalg.norm(hand[2, :2] - hand[17, :2])
    assert done[0, 142:163, :3] == pytest.approx((hand - hand[0]) / scale, rel=1e-4, abs=1e-5)


def test_the_normalisation_is_found_out() -> None:
    raw = frames(3, adjusted=False)
    assert normalisation_of(raw) == "raw"
    assert normalisation_of(adjust(raw)) == "adjusted"
    assert normalisation_of(lose(adjust(raw), "face")) == "adjusted"
    assert normalisation_of(np.zeros((3, 184, 4))) == "unknown"
