"""The type of the arithmetic: autocast by `computational.amp`."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from medtrain.errors import ConfigError


def choose_amp(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of `computational.amp` on a device; None: there is no autocast."""
    if amp == "fp16" and device.type == "cpu":
        raise ConfigError("computational.amp: 'fp16' needs a GPU; use 'bf16' or 'no' on the CPU")
    if amp == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def autocast(device: torch.device, amp: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """The context in which a model computes in the chosen type."""
    return contextlib.nullcontext() if amp is None else torch.autocast(device.type, dtype=amp)
