"""Pickles of any origin, PyTorch files among them, read without trusting them.

A pickle is a program: it names classes and functions, and calls them. Here the names come from a short list, and
what they stand for is ours: classes of other projects become stubs that keep attributes and do nothing, tensors
are put together by a function that checks its arguments. Nothing is imported, and none of the objects a file gets
hold of can be changed by it. A name outside the list is refused, whatever it is.
"""

from __future__ import annotations

import io
import pickle
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from medtrain.errors import CheckpointError


class Stub:
    """Stands for an object whose class was not imported: takes any arguments, keeps attributes, does nothing."""

    # Without a __dict__ a file cannot give it methods.
    __slots__ = ("attributes",)
    attributes: dict[str, Any]

    # torch asks this of the classes of old files; True would let it write their source code to disk.
    dump_patches = False

    def __new__(cls, *args: object, **kwargs: object) -> Stub:
        stub = super().__new__(cls)
        stub.attributes = {}
        return stub

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if type(state) is dict:
            self.attributes.update(state)


class _Mapping(dict[Any, Any]):
    """Stands for every kind of dict; what else such an object carries is dropped."""

    __slots__ = ()

    def __init__(self, items: object = (), *args: object, **kwargs: object) -> None:
        # The first argument of a defaultdict is a factory; an OrderedDict of Python 2 comes with its items.
        super().__init__(items if isinstance(items, dict | list | tuple) else ())

    def __setstate__(self, state: object) -> None:
        pass


class _TensorOfStorage:
    """Stands for `torch._utils._rebuild_tensor` and its versions; hooks and gradients are dropped."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: int, size: Any, stride: Any, *rest: object) -> Tensor:
        if type(storage) is not torch.storage.TypedStorage:
            raise CheckpointError("it has a tensor without values")
        values, last = len(storage), offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min(offset, *stride, 0) < 0 or (0 not in size and last >= values):
            raise CheckpointError(f"it has a tensor {tuple(size)} that lies outside its {values} values")
        tensor: Tensor = torch._utils._rebuild_tensor(storage, offset, size, stride)  # type: ignore[no-untyped-call]
        return tensor


class _TensorOfParameter:
    """Stands for `torch._utils._rebuild_parameter`: the tensor of a parameter is all we want of it."""

    __slots__ = ()

    def __call__(self, data: Any, *rest: object) -> Any:
        return data


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that finds only what its class lists; nothing that a file names is imported.

    known: what a full name stands for. stubs: packages (with a dot at the end) and full names whose classes become
    stubs. refusal: what the error says of every other name.
    """

    known: ClassVar[Mapping[str, Any]] = {}
    stubs: ClassVar[tuple[str, ...]] = ()
    refusal: ClassVar[str] = "is not expected in it"

    def find_class(self, module: str, name: str, /) -> Any:
        full = f"{module}.{name}"
        if full in self.known:
            return self.known[full]
        packages = tuple(stub for stub in self.stubs if stub.endswith("."))
        if (f"{module}.".startswith(packages) or full in self.stubs) and name.isidentifier():
            return type(name, (Stub,), {"__slots__": ()})
        raise CheckpointError(f"it asks for {full}, which {self.refusal}")


_TENSOR, _PARAMETER = _TensorOfStorage(), _TensorOfParameter()


class StateDictUnpickler(RestrictedUnpickler):
    """Reads what `torch.save` writes of a state dict, and of what usually stands beside it."""

    known: ClassVar[Mapping[str, Any]] = {
        "collections.OrderedDict": _Mapping,
        "collections.defaultdict": _Mapping,
        "collections.Counter": _Mapping,
        "torch.Size": tuple,
        "torch._utils._rebuild_tensor": _TENSOR,
        "torch._utils._rebuild_tensor_v2": _TENSOR,
        "torch._utils._rebuild_parameter": _PARAMETER,
        "torch._utils._rebuild_parameter_with_state": _PARAMETER,
    }
    # Stubs do nothing whatever they stand for; the list is short all the same, so that a file that asks for more is
    # refused instead of half understood.
    stubs: ClassVar[tuple[str, ...]] = (
        "torch.nn.",
        "numpy.",
        "argparse.",
        "pathlib.",
        "_codecs.encode",
        "torch.device",
        *(f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
        *(
            f"{builtins}.{name}"
            for builtins in ("builtins", "__builtin__")
            for name in ("bool", "complex", "dict", "float", "frozenset", "int", "list", "set", "slice", "str", "tuple")
        ),
    )
    refusal: ClassVar[str] = (
        "no state dict needs and which might run code. If you trust its source, save its state_dict() as safetensors "
        "where it was made"
    )


def unpickle(content: bytes, path: Path, unpickler: type[RestrictedUnpickler] = StateDictUnpickler) -> Any:
    """What a file of `torch.save` holds: dicts, lists, numbers, tensors on the CPU, and stubs for all else.

    content: the file, zip or of the older form. path: its name in messages. unpickler: what the file may name. Raises
    CheckpointError when it is no such file, is damaged, or asks for anything else.
    """
    if content.startswith(b"PK") and b"constants.pkl" in content:
        raise CheckpointError(f"{path} is a TorchScript program: save a state dict or safetensors instead")
    if content[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive: unpack it and name the weights file in it")
    # A stand-in for the module `pickle`, as `torch.load` wants it.
    restricted = types.SimpleNamespace(
        __name__="restricted_pickle",
        Unpickler=unpickler,
        load=lambda file, **options: unpickler(file, **options).load(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files carry the source code of their classes, which torch compares
        try:
            # From memory, not from the file: real files torch would also try as tar archives, unpacked to disk.
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=restricted)
        except CheckpointError as error:
            raise CheckpointError(f"{path} was not loaded: {error}") from None
        except Exception as error:  # a damaged pickle may fail in any way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path} is neither safetensors nor a readable PyTorch file: {reason}") from error
