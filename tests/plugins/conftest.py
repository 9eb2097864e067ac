"""Golden numeric cases and the formula weights they were computed with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden" / "networks.json"
KEPT = {"pe", "triangular_mask"}


class Case:
    """One golden case: `case.inputs`, `case.outputs`, and both as tensors."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.inputs: dict[str, Any] = case["inputs"]
        self.outputs: dict[str, Any] = case["outputs"]

    def tensor(self, name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        found = self.inputs[name] if name in self.inputs else self.outputs[name]
        return torch.tensor(found, dtype=dtype)

    def load_into(self, module: torch.nn.Module) -> torch.nn.Module:
        """The case's weights, strictly, in double precision and eval mode."""
        state = {}
        for key, own in module.state_dict().items():
            dtype = torch.float64 if own.is_floating_point() else own.dtype
            state[key] = torch.tensor(self.inputs["state_dict"][key], dtype=dtype)
        assert state.keys() == self.inputs["state_dict"].keys()
        module.double().load_state_dict(state)
        return module.eval()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, which wait for each other where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Case]:
    """`golden("resize_flow")` is that case of tests/golden/networks.json."""
    cases = json.loads(GOLDEN.read_text())
    return lambda name: Case(cases[name])


@pytest.fixture(scope="session")
def formula_weights() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """Fills a float32 module by the rule of the golden file, and returns it in eval mode."""

    def fill(module: torch.nn.Module) -> torch.nn.Module:
        state = module.state_dict()
        for k, key in enumerate(sorted(state)):
            tensor, name = state[key], key.rsplit(".", 1)[-1]
            if name in KEPT or not tensor.is_floating_point():
                continue
            s = np.sin(0.7 * np.arange(tensor.numel()) + 0.3 * k + 0.1).reshape(tensor.shape)
            if name == "running_var":
                value = 1 + 0.2 * s
            elif name == "running_mean":
                value = 0.1 * s
            elif tensor.ndim >= 2:
                value = 0.7 * s / np.sqrt(tensor.numel() / tensor.shape[0])
            elif name == "weight":
                value = 1 + 0.1 * s
            else:
                value = 0.1 * s
            tensor.copy_(torch.from_numpy(np.asarray(value)))
        return module.eval()

    return fill


@pytest.fixture(scope="session")
def formula_image() -> Callable[..., torch.Tensor]:
    """`formula_image(s, B, H, W)`: the golden file's test image, (B, 1, H, W) float64."""

    def image(s: int, b: int, h: int, w: int) -> torch.Tensor:
        rows = 0.11 * np.arange(h)[None, :, None] + 0.5 * np.arange(b)[:, None, None] + 0.3 * s
        columns = 0.07 * np.arange(w)[None, None, :] + 0.9 * s
        return torch.from_numpy(0.5 + 0.25 * np.sin(rows) + 0.25 * np.cos(columns)).unsqueeze(1)

    return image
