"""Keypoint files in the two published layouts, as their tools write them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from medtrain_plugins.sign.data.container import Clip
from medtrain_plugins.sign.data.landmarks import ANCHORS, GROUPS


def frames(length: int, seed: int = 0, adjusted: bool = True) -> Any:
    """Random frames (length, 184, 4) float32 with every group detected."""
    made = np.random.default_rng(seed).normal(size=(length, 184, 4)).astype(np.float32)
    made[..., 3] = 1
    if adjusted:
        made[:, list(ANCHORS.values()), :3] = 0
    return made


def clips(
    signs: Iterable[int] = (1, 2, 3), signers: Iterable[int] = (1, 2), train: int = 4, test: int = 2
) -> list[Clip]:
    """Random clips, sign by sign and signer by signer; each has its own length."""
    made = []
    for sign in signs:
        for signer in signers:
            for number in range(train + test):
                seed = sign * 1000 + signer * 100 + number
                split = "train" if number < train else "test"
                name = f"01_{signer:02d}_{sign:04d}_({number:02d})_c"
                made.append(Clip(name, sign, signer, split, frames(5 + seed % 7, seed)))
    return made


def write_npz(folder: Path, made: Iterable[Clip]) -> Path:
    """`<folder>/karsl-kps/<signer>-<split>/<sign>.npz`, float64 as extracted."""
    files: dict[Path, dict[str, Any]] = {}
    for clip in made:
        path = folder / "karsl-kps" / f"{clip.signer:02d}-{clip.split}" / f"{clip.sign:04d}.npz"
        files.setdefault(path, {})[clip.clip] = clip.frames.astype(np.float64)
    for path, arrays in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)
    return folder


def write_mmap(folder: Path, made: Iterable[Clip], half: bool = False) -> Path:
    """The four files of each split; half: values pass through float16, as in the published files."""
    made = list(made)
    folder.mkdir(parents=True, exist_ok=True)
    for split in sorted({clip.split for clip in made}):
        part = sorted((c for c in made if c.split == split), key=lambda c: (c.sign, c.signer))
        values = np.concatenate([c.frames.astype(np.float16 if half else np.float32) for c in part]).astype(np.float32)
        values.tofile(folder / f"{split}_X.mmap")
        np.save(folder / f"{split}_X_shape.npy", np.array(values.shape))
        np.savez(folder / f"{split}_y.npz", np.array([c.sign - 1 for c in part]))
        lengths: dict[int, dict[int, list[int]]] = {}
        for clip in part:
            lengths.setdefault(clip.sign, {}).setdefault(clip.signer, []).append(len(clip.frames))
        np.save(folder / f"{split}_X_map_samples_lens.npy", np.array(lengths, dtype=object))
    return folder


def lose(values: Any, group: str, where: Any = slice(None)) -> Any:
    """The frames with a group not detected in some of them."""
    lost = values.copy()
    lost[where, GROUPS[group]] = 0
    return lost
