"""Weights in files of any origin, read without running any code in them."""

from __future__ import annotations

from medtrain.protocols.model import load_state
from medtrain.protocols.weights import State, Weights
from medtrain.weights.saved_model import SavedModel, read_model, read_weights
from medtrain.weights.state_dicts import METADATA, plain_state, read_about, read_state
from medtrain.weights.unpickling import RestrictedUnpickler, StateDictUnpickler, Stub, unpickle
from medtrain.weights.weights_file import weights_file

__all__ = [
    "METADATA", "RestrictedUnpickler", "SavedModel", "State", "StateDictUnpickler", "Stub", "Weights", "load_state",
    "plain_state", "read_about", "read_model", "read_state", "read_weights", "unpickle", "weights_file",
]  # fmt: skip
