"""Golden cases and formula weights of VMRA-MaR, batches of visits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medtrain_plugins.vmra_mar.model import VMRAMaR

GOLDEN = Path(__file__).parents[2] / "golden" / "vmra_mar.json"
KEPT = {"A_logs", "Ds", "learned_asym_mean", "learned_asym_std", "triangular_mask"}


@pytest.fixture(scope="session")
def cases(golden) -> Callable[[str], Any]:
    """`cases("sad")` is that case of tests/golden/vmra_mar.json."""
    found = json.loads(GOLDEN.read_text())
    case_type = type(golden("resize_flow"))
    return lambda name: case_type(found[name])


@pytest.fixture(scope="session")
def model() -> VMRAMaR:
    """The network as in the published code, filled by the rule of the golden file; do not change it."""
    model = VMRAMaR(compat="reference")
    state = model.state_dict()
    for k, key in enumerate(sorted(state)):
        tensor, name = state[key], key.rsplit(".", 1)[-1]
        if name in KEPT or not tensor.is_floating_point():
            continue
        s = np.sin(0.7 * np.arange(tensor.numel()) + 0.3 * k + 0.1).reshape(tensor.shape)
        if name == "running_var":
            value = 1 + 0.2 * s
        elif name == "dt_projs_bias":
            value = -3 + 0.5 * s
        elif name.endswith("stretch_params"):
            value = 1 + 0.1 * s
        elif name != "running_mean" and tensor.ndim >= 2:
            value = 0.7 * s / np.sqrt(tensor.numel() / tensor.shape[0])
        elif name == "weight":
            value = 1 + 0.1 * s
        else:
            value = 0.1 * s
        tensor.copy_(torch.from_numpy(np.asarray(value)))
    return model.eval()


@pytest.fixture(scope="session")
def with_options() -> Callable[..., VMRAMaR]:
    """`with_options(model, compat="fixed")`: a copy with the same weights under other options, in eval mode."""

    def make(model: VMRAMaR, **options: Any) -> VMRAMaR:
        with torch.device("meta"):
            other = VMRAMaR(**options)
        own = other.state_dict()
        other.load_state_dict({k: v.clone() for k, v in model.state_dict().items() if k in own}, assign=True)
        return other.eval()

    return make


@pytest.fixture(scope="session")
def images() -> Callable[..., torch.Tensor]:
    """`images(B, T, H, W)`: noise in [0, 1], the same for every call."""

    def make(count: int, visits: int, height: int = 64, width: int = 64) -> torch.Tensor:
        return torch.rand(count, visits, 4, 1, height, width, generator=torch.Generator().manual_seed(3))

    return make
