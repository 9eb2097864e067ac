"""How long the brain plugin takes to read a sample, beside nibabel and torch alone, and how long from a cache.

    python benchmarks/brain_reading.py [--sizes 16 32 64 96 160] [--images 12] [--rounds 15]

Every round reads all images once by each way, in turn, from files in the page cache, in one process and thread. The
ways: `bare` (`nibabel.load(path).get_fdata(dtype=float32)`, `torch.from_numpy`, a channel axis), `ours` (the dataset
without a cache), `memory` and `disk` (with one, filled). Ratios are of the best and of the median rounds. `first epoch`
reads and fills a new cache in memory, once per round. The table is written to benchmarks/results/brain_reading.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
from medtrain_plugins.brain.data.dataset import BidsDataset
from medtrain_plugins.brain.synth import synthesize

RESULTS = Path(__file__).parent / "results" / "brain_reading.md"


def read_bare(path: str) -> torch.Tensor:
    """What anyone would write."""
    return torch.from_numpy(nibabel.load(path).get_fdata(dtype=np.float32)).unsqueeze(0)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(size: int, images: int, rounds: int, folder: Path) -> dict[str, float]:
    """Milliseconds per image, best and median, and ratios."""
    synthesize(folder / "tree", images // 2, sessions=2, size=size)

    def opened(cache: str) -> BidsDataset:
        return BidsDataset(folder / "tree", label="diagnosis", cache=cache, cache_dir=folder / "cache")  # type: ignore[arg-type]

    plain, disk = opened("none"), opened("disk")
    paths = plain._images
    for row, path in enumerate(paths):
        assert torch.equal(read_bare(path), plain[row]["image"]) and torch.equal(
            plain[row]["image"], disk[row]["image"]
        )

    def epoch(dataset: BidsDataset) -> None:
        for row in range(len(dataset)):
            dataset[row]

    times: dict[str, list[float]] = {name: [] for name in ("bare", "ours", "first epoch", "memory", "disk")}
    for _ in range(rounds):
        memory = opened("memory")
        times["bare"].append(seconds(lambda: [read_bare(path) for path in paths]))
        times["ours"].append(seconds(lambda: epoch(plain)))
        times["first epoch"].append(seconds(lambda: epoch(memory)))  # noqa: B023 - called at once
        times["memory"].append(seconds(lambda: epoch(memory)))  # noqa: B023
        times["disk"].append(seconds(lambda: epoch(disk)))
    found: dict[str, float] = {"size": size}
    for estimate, of in (("best", min), ("median", statistics.median)):
        value = {name: of(taken) / len(paths) * 1e3 for name, taken in times.items()}
        found |= {f"{name}, ms ({estimate})": round(ms, 4) for name, ms in value.items()}
        found[f"ours / bare ({estimate})"] = round(value["ours"] / value["bare"], 3)
        for name in ("memory", "disk"):
            found[f"first / {name} ({estimate})"] = round(value["first epoch"] / value[name], 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64, 96, 160])
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(size, given.images, given.rounds, Path(folder)))
    ratios = [name for name in rows[0] if "/" in name]
    names = [name for name in rows[0] if name != "size" and name not in ratios] + ratios
    lines = ["| int16 image, .nii.gz | " + " | ".join(f"{row['size']:.0f}^3" for row in rows) + " |"]
    lines.append("| --- |" + " ---: |" * len(rows))
    lines += [f"| {name} | " + " | ".join(f"{row[name]:g}" for row in rows) + " |" for name in names]
    about = f"Python {platform.python_version()}, torch {torch.__version__}, nibabel {nibabel.__version__}, one thread"
    text = f"# Reading brain images\n\n{given.images} images, {given.rounds} rounds, times per image. {about}.\n\n"
    RESULTS.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
