"""Golden numeric cases of the detector's parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CASES: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parents[2] / "golden" / "nodule_parts.json").read_text()
)


def tensor(case: dict[str, Any], name: str, shape: str = "shape") -> Tensor:
    """An input of a case in its shape, float64, with grad."""
    values = torch.tensor(case["inputs"][name], dtype=torch.float64)
    return values.reshape(case["inputs"].get(shape, values.shape)).requires_grad_(name == "logits")


def close(found: Any, case: dict[str, Any], atol: float = 1e-12) -> None:
    """Compare with the case's expectation."""
    found = found if isinstance(found, Tensor) else torch.as_tensor(found)
    wanted = torch.tensor(case["expected"], dtype=found.dtype).reshape(found.shape)
    torch.testing.assert_close(found.detach(), wanted, atol=atol, rtol=0)
