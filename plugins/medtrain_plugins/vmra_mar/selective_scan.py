"""The selective scan of state-space models: all positions of a sequence at once, in plain PyTorch.

Source: "Mamba: linear-time sequence modeling with selective state spaces", 2023.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

log = logging.getLogger("medtrain")

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """`x_i = exp(delta_i A) x_{i-1} + delta_i B_i u_i`, `y_i = <C_i, x_i> + D u_i`, with `x_0 = 0` before the start.

    u (N, G * K, L) input of G groups with K channels each; delta (N, G * K, L) step sizes, not negative: with 0 the
    state does not change, as if that position did not exist; A (G * K, S), negative, and D (G * K,) per channel; B, C
    (N, G, S, L) shared by the channels of a group. Output (N, G * K, L). Computed and returned in float32 for all
    inputs and under autocast, in float64 if u is float64.

    The fused kernel of `mamba_ssm` is used if that package is installed, if it gives our values and gradients on this
    device, and if torch's deterministic algorithms are off: its backward pass is not deterministic.
    """
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    with torch.autocast(u.device.type, enabled=False):
        u, delta, A, B, C, D = (tensor.to(dtype) for tensor in (u, delta, A, B, C, D))
        scan = None if torch.are_deterministic_algorithms_enabled() else fused_scan(u.device, dtype)
        return (scan or parallel_scan)(u, delta, A, B, C, D)


def parallel_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """`selective_scan` in ceil(log2 L) steps: same arguments and result, all of one dtype.

    A position's update `x -> a x + b` is composed with that of the position 1, 2, 4, ... before it, until each is the
    composition of all up to it. Only products and sums of the recurrence's terms occur, so overflow and cancellation
    are the same as in a loop; memory grows with L log L.

    Source: "Data parallel algorithms" (Hillis and Steele), 1986.
    """
    count, groups, size, length = B.shape
    steps = delta.reshape(count, groups, -1, 1, length)  # (N, G, K, 1, L)
    decay = torch.exp(steps * A.reshape(groups, -1, size, 1))  # (N, G, K, S, L)
    state = steps * u.reshape(steps.shape) * B.unsqueeze(2)
    reach = 1
    while reach < length:
        state = state + decay * F.pad(state[..., :-reach], (reach, 0))
        if 2 * reach < length:
            decay = decay * F.pad(decay[..., :-reach], (reach, 0), value=1.0)
        reach *= 2
    y: Tensor = (state * C.unsqueeze(2)).sum(3).reshape(u.shape) + D.unsqueeze(-1) * u
    return y


@cache
def fused_scan(device: torch.device, dtype: torch.dtype) -> Scan | None:
    """The kernel of `mamba_ssm`, if it is installed and agrees with `parallel_scan`; looked up once per process."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # type: ignore[import-not-found]
    except ImportError:
        level = logging.INFO if device.type == "cuda" else logging.DEBUG  # it needs CUDA
        log.log(level, "mamba_ssm is not installed: the selective scan runs in plain PyTorch")
        return None
    except Exception as error:  # a compiled package can fail to load in many ways, and it is optional
        log.warning("mamba_ssm cannot be loaded (%s); the selective scan runs in plain PyTorch instead", error)
        return None
    try:
        difference = _disagreement(selective_scan_fn, device, dtype)
    except Exception as error:
        log.info("mamba_ssm does not run on %s in %s (%s); plain PyTorch is used", device.type, dtype, error)
        return None
    if not difference < 1e-3:
        log.warning(
            "the selective scan of the installed mamba_ssm differs from its definition by %.1e (on %s in %s); "
            "plain PyTorch is used",
            difference,
            device.type,
            dtype,
        )
        return None
    log.info("selective scan: the fused kernel of mamba_ssm, which agrees within %.1e", difference)
    fused: Scan = selective_scan_fn
    return fused


def _disagreement(scan: Scan, device: torch.device, dtype: torch.dtype) -> float:
    """The largest difference between a scan's values and gradients and ours, relative to our largest value."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (2, 16, 5), "delta": (2, 16, 5), "A": (16, 4), "B": (2, 4, 4, 5), "C": (2, 4, 4, 5), "D": (16,)}
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    drawn["delta"], drawn["A"] = F.softplus(drawn["delta"]), -drawn["A"].exp()
    drawn["delta"][0, :, :2] = 0  # missing positions
    results = []
    for run in (parallel_scan, scan):
        inputs = [tensor.to(device, dtype).requires_grad_() for tensor in drawn.values()]
        with torch.enable_grad():
            y = run(*inputs)
            gradients = torch.autograd.grad((y * y).sum(), inputs)
        results.append([y.detach(), *gradients])
    return max(float((ours - theirs).abs().max() / ours.abs().max()) for ours, theirs in zip(*results, strict=True))
