"""Weights in files of any origin, read without running any code in them."""

from __future__ import annotations

from medtrain.protocols.model import load_state
from medtrain.protocols.weights import State, Weights
from medtrain.weights.pickles import Shell, unpickle
from medtrain.weights.reading import plain_state, read_about, read_state
from medtrain.weights.weights_file import weights_file

__all__ = [
    "Shell", "State", "Weights", "load_state", "plain_state", "read_about", "read_state", "unpickle", "weights_file",
]  # fmt: skip
