"""The selective scan: golden values, a loop over positions, gradients, skipped positions, another kernel."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
from medtrain_plugins.vmra_mar.selective_scan import fused_scan, parallel_scan, selective_scan
from torch.nn.functional import softplus
from torch.testing import assert_close


def one_by_one(u, delta, A, B, C, D) -> torch.Tensor:
    """The definition, position by position."""
    channels = u.shape[1] // B.shape[1]
    B, C = B.repeat_interleave(channels, dim=1), C.repeat_interleave(channels, dim=1)
    state, y = torch.zeros_like(B[..., 0]), []
    for i in range(u.shape[2]):
        step = delta[:, :, i, None]
        state = torch.exp(step * A) * state + step * B[..., i] * u[:, :, i, None]
        y.append((C[..., i] * state).sum(-1) + D * u[:, :, i])
    return torch.stack(y, dim=-1)


def drawn(length: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, 6, length), (2, 6, length), (6, 4), (2, 3, 4, length), (2, 3, 4, length), (6,)]
    u, delta, A, B, C, D = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [tensor.to(dtype).requires_grad_() for tensor in (u, softplus(delta), -A.exp(), B, C, D)]


def test_golden_values(cases):
    case = cases("selective_scan")
    u, A, B, C, D = (case.tensor(name) for name in "uABCD")
    delta = softplus(case.tensor("delta") + case.tensor("delta_bias").unsqueeze(-1))
    assert_close(selective_scan(u, delta, A, B, C, D), case.tensor("y"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 200])
def test_all_at_once_equals_one_by_one(length):
    inputs = drawn(length)
    ours, expected = parallel_scan(*inputs), one_by_one(*inputs)
    assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [torch.autograd.grad(y, inputs, cotangent, materialize_grads=True) for y in (ours, expected)]
    assert_close(*gradients, rtol=1e-10, atol=1e-10)
    short = drawn(length, torch.float32)
    assert_close(parallel_scan(*short).double(), expected, rtol=1e-5, atol=1e-5)


def test_long_steps_neither_overflow_nor_vanish():
    u, delta, A, B, C, D = drawn(200)
    inputs = [u, 400 * delta, A, B, C, D]  # exp(-400 * 200) is 0 in any precision, its inverse infinite
    ours = parallel_scan(*inputs)
    assert ours.isfinite().all()
    assert_close(ours, one_by_one(*inputs), rtol=1e-10, atol=1e-10)
    assert all(g.isfinite().all() for g in torch.autograd.grad(ours.sum(), [u, delta, A, B, C, D]))


def test_a_step_of_zero_skips_the_position():
    u, delta, A, B, C, D = drawn(7)
    keep = torch.tensor([0, 1, 0, 0, 1, 1, 0], dtype=torch.bool)
    skipped = parallel_scan(u, delta * keep, A, B, C, D)[..., keep]
    alone = parallel_scan(u[..., keep], delta[..., keep], A, B[..., keep], C[..., keep], D)
    assert_close(skipped, alone, rtol=1e-12, atol=1e-12)


def test_autocast_and_short_floats_change_nothing_but_the_input():
    inputs = drawn(5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = selective_scan(*inputs)
    assert torch.equal(inside, selective_scan(*inputs))
    short = selective_scan(inputs[0].bfloat16(), *inputs[1:])
    assert short.dtype == torch.float32
    assert_close(short, parallel_scan(inputs[0].bfloat16().float(), *inputs[1:]))


# A package of that name on disk: one kernel that computes the scan, one that answers its input.
CORRECT = """
import torch
def selective_scan_fn(u, delta, A, B, C, D):
    channels = u.shape[1] // B.shape[1]
    B, C = B.repeat_interleave(channels, dim=1), C.repeat_interleave(channels, dim=1)
    state, y = 0, []
    for i in range(u.shape[2]):
        step = delta[:, :, i, None]
        state = torch.exp(step * A) * state + step * B[..., i] * u[:, :, i, None]
        y.append((C[..., i] * state).sum(-1) + D * u[:, :, i])
    return torch.stack(y, dim=-1)
"""
IDENTITY = """
def selective_scan_fn(u, *others):
    return u + 0 * sum(tensor.sum() for tensor in others)
"""
CRASHING = "def selective_scan_fn(*inputs):\n    raise RuntimeError('Expected u.is_cuda() to be true')\n"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`installed(source)` puts a `mamba_ssm` with that kernel on the path; it is gone after the test."""

    def install(source: str) -> None:
        folder = tmp_path / "mamba_ssm" / "ops"
        folder.mkdir(parents=True)
        for package in (folder.parent, folder):
            (package / "__init__.py").touch()
        (folder / "selective_scan_interface.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mamba_ssm"]:
            del sys.modules[name]
        fused_scan.cache_clear()

    forget()
    yield install
    forget()


def test_a_kernel_that_agrees_is_used(installed, caplog):
    caplog.set_level(logging.INFO, logger="medtrain")
    installed(CORRECT)
    state = torch.get_rng_state()
    inputs = drawn(4, torch.float32)
    y = selective_scan(*inputs)
    kernel = fused_scan(torch.device("cpu"), torch.float32)
    assert kernel is not None and kernel.__module__ == "mamba_ssm.ops.selective_scan_interface"
    assert torch.equal(y, kernel(*inputs))
    assert torch.equal(torch.get_rng_state(), state)
    assert caplog.text.count("fused kernel of mamba_ssm") == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [(IDENTITY, "differs from its definition"), (CRASHING, "does not run on cpu"), ("1 / 0", "cannot be loaded")],
)
def test_a_kernel_that_does_not_agree_is_refused(installed, caplog, source, message):
    caplog.set_level(logging.INFO, logger="medtrain")
    installed(source)
    inputs = drawn(4, torch.float32)
    for _ in range(2):
        assert torch.equal(selective_scan(*inputs), parallel_scan(*inputs))
    assert caplog.text.count(message) == 1


def test_deterministic_runs_use_our_own(installed):
    installed(CORRECT.replace("return ", "return 2 * "))
    inputs = drawn(4, torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        selective_scan(*inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    assert fused_scan.cache_info().misses == 0
