"""Networks as ONNX files that say what they are, shared by the exports of several plugins."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

OPSET = 18
METADATA = "medtrain"  # where a file says as JSON what it is


def write_onnx(
    network: nn.Module, example: Tensor, path: Path, about: dict[str, Any], inputs: str, outputs: Sequence[str]
) -> None:
    """Write one file, weights included. The first axis, of `example` two long, is the batch and may be of any size."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            input_names=[inputs],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch_size")},),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    exported = program.model_proto
    # The exporter notes where in the source each node comes from, with the paths of this machine.
    for node in exported.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*exported.graph.input, *exported.graph.output, *exported.graph.initializer):
        value.ClearField("metadata_props")
    exported.graph.ClearField("metadata_props")
    # Shapes between nodes can be inferred; the stored ones stand in the way of quantizers.
    exported.graph.ClearField("value_info")
    save_onnx(exported, path, about)


def save_onnx(exported: onnx.ModelProto, path: Path, about: dict[str, Any]) -> None:
    """Write a checked model, the same bytes for the same model."""
    exported.ClearField("metadata_props")
    onnx.helper.set_model_props(exported, {METADATA: json.dumps(about, sort_keys=True, ensure_ascii=False)})
    onnx.checker.check_model(exported, full_check=True)
    path.write_bytes(exported.SerializeToString(deterministic=True))


def open_onnx(path: Path) -> onnxruntime.InferenceSession:
    """The file in ONNX Runtime, on the CPU, with as many threads as torch has."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
