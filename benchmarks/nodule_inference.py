"""Sliding-window inference of the nodule plugin beside plain MONAI: the same scan, network, windows and blending.

    python benchmarks/nodule_inference.py [--size 96 128 128] [--window 64] [--rounds 7] [--device cpu]

Every round runs each way once, in turn. The ways: `MONAI` (`monai.inferers.sliding_window_inference`, Gaussian), `ours`
(`compute_maps`, which also cuts the scan to size and averages views), `lungs only` (`compute_maps` with a mask of two
lungs in the upper half of the scan: windows without lung are left out). The maps of the first two are compared before
anything is timed. Ratios are time of MONAI over ours: above 1, ours is faster. `blending alone` uses a network that
costs nothing, so that only the handling of windows is left. The table is written to
benchmarks/results/nodule_inference.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from medtrain_plugins.nodule.inference.sliding_window import activate, compute_maps, evaluating
from medtrain_plugins.nodule.model.build import build_detector
from medtrain_plugins.nodule.options import InferenceOptions
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results" / "nodule_inference.md"


class Free(nn.Module):
    """Nine maps for nothing."""

    output_stride = 1

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {
            "heatmap": image,
            "offset": image.repeat(1, 3, 1, 1, 1),
            "log_diameter": image.repeat(1, 3, 1, 1, 1),
            "triage": image,
            "segmentation": image,
        }


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    model: nn.Module, volume: Tensor, inside: Tensor, window: int, rounds: int, device: torch.device, on: str
) -> dict[str, list[float]]:
    """Seconds of every round, by way."""
    options = InferenceOptions.model_validate({"window": [window], "batch_size": 2, "accumulate_on": on})
    where = device if on == "device" else torch.device("cpu")

    def ours() -> dict[str, Tensor]:
        return compute_maps(model, volume, options, device=device)

    def monai() -> dict[str, Tensor]:
        with evaluating(model), torch.inference_mode():
            found = sliding_window_inference(
                volume[None, None],
                (window,) * 3,
                2,
                lambda batch: activate(model(batch)),
                overlap=0.5,
                mode="gaussian",
                sw_device=device,
                device=where,
            )
        return {name: values[0] for name, values in found.items()}  # type: ignore[union-attr]

    a, b = ours(), monai()
    for name, values in a.items():
        torch.testing.assert_close(values.cpu(), b[name].cpu(), atol=1e-4, rtol=0)
    ways = {"MONAI": monai, "ours": ours}
    ways["lungs only"] = lambda: compute_maps(model, volume, options, device=device, inside=inside)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(way, device))
    return times


def lungs(shape: list[int]) -> Tensor:
    """Two upright ellipses, a fifth of the scan, from one half of its height on."""
    z, y, x = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
    left, right = (((x - side) / 0.3) ** 2 + (y / 0.5) ** 2 < 1 for side in (-0.45, 0.45))
    return (left | right) & (z > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[96, 128, 128])
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if any((size - given.window) % (given.window // 2) for size in given.size):
        parser.error("sizes have to be the window and multiples of half of it, so that both use the same windows")
    device = torch.device(given.device)
    torch.manual_seed(0)
    volume = torch.rand(given.size)
    detector = build_detector(base_filters=8, depth=3).to(device)
    lines = [
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {device}; scan "
        f"{given.size}, windows of {given.window}, {given.rounds} rounds (blending alone: six times as many).",
        "",
        "| network | maps on | MONAI, s | ours, s | lungs only, s | ratio of medians | of best rounds | lungs only |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, model in (("residual U-Net, 8 filters, depth 3, all heads", detector), ("blending alone", Free())):
        for on in ("cpu",) if device.type == "cpu" else ("cpu", "device"):
            rounds = given.rounds * (6 if model is not detector else 1)
            times = measure(model, volume, lungs(given.size), given.window, rounds, device, on)
            middle = {name: statistics.median(values) for name, values in times.items()}
            best = {name: min(values) for name, values in times.items()}
            cells = [f"{middle[name]:.3f}" for name in ("MONAI", "ours", "lungs only")]
            cells += [f"{middle['MONAI'] / middle['ours']:.2f}", f"{best['MONAI'] / best['ours']:.2f}"]
            cells += [f"{middle['MONAI'] / middle['lungs only']:.2f}"]
            lines.append(f"| {label} | {on} | {' | '.join(cells)} |")
    RESULTS.write_text("# Sliding-window inference beside MONAI\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
