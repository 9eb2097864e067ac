"""How long the nodule detector takes to load a training patch, beside plain MONAI on the same volume.

    python benchmarks/nodule_patches.py [--sizes 48 96] [--patches 8] [--rounds 15]

One scan of 256 x 320 x 320 voxels, int16, in the page cache, one process and thread. `plain`: a window of random place,
clipped and scaled; `augmented`: also mirrored, turned by up to 15 degrees, zoomed by 0.9 to 1.1 and with noise, each
always. Ours maps the file and makes the targets of a patch besides. MONAI holds the scan in memory, the whole time: as
int16, from which a window is cropped and then scaled, or as float32 that was scaled before (twice the memory of the
scan, and nothing left to do for a plain patch but to copy it). It resamples in `RandAffined`. Patches are stacked to a
batch, as a crop of MONAI's is a view until then. Rounds are interleaved; ratios are of the best and of the median
rounds. The table is written to benchmarks/results/nodule_patches.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import monai
import numpy as np
import torch
from medtrain_plugins.nodule.data.augmentation import AugmentationOptions
from medtrain_plugins.nodule.data.dataset import NodulePatches
from medtrain_plugins.nodule.data.sampling import Sampling
from medtrain_plugins.nodule.scans.intensity import Intensity
from medtrain_plugins.nodule.scans.manifest import ManifestRow, Nodule
from monai.transforms import Compose, RandAffined, RandFlipd, RandGaussianNoised, RandSpatialCropd, ScaleIntensityRanged

RESULTS = Path(__file__).parent / "results" / "nodule_patches.md"
SHAPE = (256, 320, 320)
ALWAYS = {"probability": 1.0}
AUGMENTED = {
    "random_flip": ALWAYS,
    "random_rotation": ALWAYS,
    "random_scale": ALWAYS,
    "random_noise": ALWAYS,
    "elastic_deformation": {"probability": 0.0},
}


def make_row(folder: Path) -> ManifestRow:
    """A scan of noise with two nodules."""
    hu = np.random.default_rng(0).integers(-1000, 400, SHAPE).astype(np.int16)
    np.save(folder / "scan.npy", hu)
    affine = ((0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1))
    nodules = [
        Nodule(id=str(at), world=(at, at, at), voxel=(at, at, at), diameter_mm=10.0, malignancy=3) for at in (90, 170)
    ]
    return ManifestRow(
        image=str(folder / "scan.npy"),
        checksum="",
        series="1.2",
        patient="p",
        shape=SHAPE,
        spacing=(1, 1, 1),
        affine=affine,
        nodules=tuple(nodules),
    )


SCALE = ScaleIntensityRanged("image", -1000, 400, 0, 1, clip=True)


def by_monai(size: int, augmented: bool, scaled: bool) -> Compose:
    """Random transforms of a volume in memory."""
    window: list[object] = [RandSpatialCropd("image", [size] * 3, random_size=False)]
    if not scaled:
        window.append(SCALE)
    if augmented:
        window += [RandFlipd("image", prob=1, spatial_axis=axis) for axis in range(3)]
        window.append(
            RandAffined(
                "image",
                prob=1,
                rotate_range=[np.pi / 12] * 3,
                scale_range=[0.1] * 3,
                mode="bilinear",
                padding_mode="border",
            )
        )
        window.append(RandGaussianNoised("image", prob=1, std=0.01))
    return Compose(window)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(row: ManifestRow, size: int, patches: int, rounds: int) -> list[dict[str, float | str]]:
    """Milliseconds per patch, and ratios."""
    volume = {"image": torch.from_numpy(np.load(row.image)[None])}
    found = []
    for augmented in (False, True):
        options = AugmentationOptions.model_validate(AUGMENTED) if augmented else None
        ours = NodulePatches(
            [row], Intensity(), Sampling((size,) * 3), patches_per_volume=patches, augmentation=options
        )
        ways: dict[str, Callable[[int], torch.Tensor]] = {"ours": lambda index, ours=ours: ours[index]["image"]}
        for name, held in (("MONAI", volume), ("MONAI, scaled before", SCALE(volume))):
            theirs = by_monai(size, augmented, held is not volume)
            ways[name] = lambda _, theirs=theirs, held=held: theirs(held)["image"]
        assert len({way(0).shape for way in ways.values()}) == 1 and len({way(0).dtype for way in ways.values()}) == 1
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                times[name].append(seconds(lambda: torch.stack([way(index) for index in range(patches)])))  # noqa: B023
        line: dict[str, float | str] = {"patch": f"{size}^3, {'augmented' if augmented else 'plain'}"}
        best, median = (
            {name: of(taken) / patches * 1e3 for name, taken in times.items()} for of in (min, statistics.median)
        )
        line |= {f"{name}, ms": round(ms, 2) for name, ms in best.items()}
        for name in list(ways)[1:]:
            ratios = (value["ours"] / value[name] for value in (best, median))
            line[f"ours / {name}"] = "{:.2f} ({:.2f})".format(*ratios)
        found.append(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 96])
    parser.add_argument("--patches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        row = make_row(Path(folder))
        lines = [line for size in given.sizes for line in measure(row, size, given.patches, given.rounds)]
    names = list(lines[0])
    text = ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]
    text += ["| " + " | ".join(str(line[name]) for name in names) + " |" for line in lines]
    about = f"Python {platform.python_version()}, torch {torch.__version__}, MONAI {monai.__version__}, one thread"
    volume = " x ".join(map(str, SHAPE))
    head = f"# Loading patches\n\nOne scan of {volume} voxels, best (median) of {given.rounds} rounds. {about}.\n\n"
    RESULTS.write_text(head + "\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
