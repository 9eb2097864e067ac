"""A file of weights cannot run anything, import anything, write anything, or change what reads the next one."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain.errors import CheckpointError
from medtrain.weights import unpickle
from medtrain.weights import unpickling as unpickle_module
from medtrain_plugins.mammography.weights.snapshots import load_backbone, load_registration, named_tensors, read_file
from mirai_files import in_old_form, in_zip, text

MARK = "executed"
CALL = text(f"touch {MARK}")
FORMS = {"bare": bytes, "zip": in_zip, "old form": in_old_form}

# Pickles that would run `touch executed`, by the opcode that does it, and the name that is refused.
RUNNING = {
    "REDUCE": (b"cposix\nsystem\n(" + CALL + b"tR.", "posix.system"),
    "REDUCE of an inner value": (b"\x80\x02}(" + text("a") + b"cposix\nsystem\n(" + CALL + b"tRu.", "posix.system"),
    "INST": (b"(" + CALL + b"iposix\nsystem\n.", "posix.system"),
    "OBJ": (b"(cposix\nsystem\n" + CALL + b"o.", "posix.system"),
    "NEWOBJ": (b"\x80\x02csubprocess\nPopen\n(" + CALL + b"I-1\nNNNNNI01\ntt\x81.", "subprocess.Popen"),
    "NEWOBJ_EX": (
        b"\x80\x04" + text("subprocess") + text("Popen") + b"\x93(" + CALL + b"t}(" + text("shell") + b"\x88u\x92.",
        "subprocess.Popen",
    ),
    "BUILD of a shell": (
        b"\x80\x02conconet.models\nX\n)\x81}(" + text("__setstate__") + b"cposix\nsystem\nub" + CALL + b"b.",
        "posix.system",
    ),
    "STACK_GLOBAL": (b"\x80\x04" + text("posix") + text("system") + b"\x93" + CALL + b"\x85R.", "posix.system"),
    "eval": (b"\x80\x04" + text("builtins") + text("eval") + b"\x93" + text("1") + b"\x85R.", "builtins.eval"),
    "getattr": (b"cbuiltins\ngetattr\n(ctorch.nn\nModule\n" + text("apply") + b"tR.", "builtins.getattr"),
    "torch's own loader": (b"ctorch.serialization\nload\n(" + text("x") + b"tR.", "torch.serialization.load"),
    "bytes as a file": (b"ctorch.storage\n_load_from_bytes\n(" + text("x") + b"tR.", "torch.storage._load_from_bytes"),
    "a path of attributes": (
        b"\x80\x04" + text("torch.nn") + text("Module.__init__.__globals__") + b"\x93.",
        "torch.nn.Module.__init__.__globals__",
    ),
    "attributes of a foreign class": (
        b"\x80\x04" + text("onconet.x") + text("__class__.__base__.__subclasses__") + b"\x93)R.",
        "onconet.x.__class__.__base__.__subclasses__",
    ),
    "a module below torch.nn": (
        b"\x80\x04" + text("torch.nn.modules.module") + text("torch.serialization.os.system") + b"\x93.",
        "torch.nn.modules.module.torch.serialization.os.system",
    ),
    "a module that only starts alike": (b"conconetx\nrun\n)R.", "onconetx.run"),
    "a dict's class method": (
        b"\x80\x04" + text("collections") + text("OrderedDict.fromkeys") + b"\x93.",
        "collections.OrderedDict.fromkeys",
    ),
    "numpy's attributes": (
        b"\x80\x04" + text("numpy") + text("f2py.crackfortran.myeval") + b"\x93.",
        "numpy.f2py.crackfortran.myeval",
    ),
}

# Pickles that name nothing forbidden and still try to get somewhere.
TAMPERING = {
    "attributes of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}("
    + text("__name__")
    + text(MARK)
    + b"ub.",
    "slots of a function": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}(" + text("__defaults__") + b"(I1\ntu\x86b."
    ),
    "attributes of a class": b"\x80\x02conconet.models\nX\n}(" + text("dump_patches") + b"\x88ub.",
    "slots of a class": b"\x80\x02ccollections\nOrderedDict\nN}(" + text("items") + b"Nu\x86b.",
    "slots of an object": b"\x80\x02ccollections\nOrderedDict\n)RN}(" + text("items") + b"Nu\x86b.",
    "a shell as a list": b"\x80\x02conconet.models\nX\n)\x81(I1\nI2\ne.",
    "a shell as a dict": b"\x80\x02conconet.models\nX\n)\x81(I1\nI2\nu.",
    "a tensor without storage": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(I0\nI0\n(I2\nt(I1\nttR.",
    "a parameter of nothing": b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
    "a text as persistent id": b"Pxyz\n.",
    "an unknown persistent id": b"\x80\x02(" + text("file") + text("/etc/passwd") + b"tQ.",
    "a module that is a function": (
        b"\x80\x02(" + text("module") + b"ctorch._utils\n_rebuild_tensor_v2\n" + text("f.py") + text("new\n") + b"tQ."
    ),
    "a module that is a dict": (
        b"\x80\x02(" + text("module") + b"ccollections\nOrderedDict\n" + text("f.py") + text("new\n") + b"tQ."
    ),
    "a module with our name": (
        b"\x80\x02(" + text("module") + b"conconet.models\nShell\n" + text("f.py") + text("new\n") + b"tQ."
    ),
    "an extension": b"\x80\x02\x82\x07.",
    "a stack that is empty": b"\x80\x02R.",
    "no end": b"\x80\x02}",
    "a memo that is not there": b"\x80\x02h\x07.",
    "a protocol to come": b"\x80\x63}.",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own; nothing but the file itself may be in it in the end."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(content: bytes, folder: Path) -> str:
    path = folder / "weights.p"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_backbone(path)
    assert [entry.name for entry in folder.iterdir()] == [path.name]
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("payload", "name"), RUNNING.values(), ids=RUNNING)
def test_nothing_runs(folder: Path, payload: bytes, name: str, form: Any) -> None:
    message = refused(form(payload), folder)
    assert f"weights.p was not loaded: it asks for {name}, which no Mirai snapshot or state dict needs" in message


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("payload", TAMPERING.values(), ids=TAMPERING)
def test_nothing_is_changed(folder: Path, payload: bytes, form: Any) -> None:
    before = {name: value for name, value in vars(unpickle_module).items() if not name.startswith("__")}
    classes = [value for value in before.values() if isinstance(value, type)]
    attributes = [dict(vars(cls)) for cls in classes]
    message = refused(form(payload), folder)
    assert "weights.p" in message
    assert {name: vars(unpickle_module)[name] for name in before} == before
    assert [dict(vars(cls)) for cls in classes] == attributes


def test_extensions_are_asked_for_by_name(folder: Path) -> None:
    copyreg.add_extension("posix", "system", 7)
    try:
        assert "asks for posix.system" in refused(b"\x80\x02\x82\x07" + CALL + b"\x85R.", folder)
    finally:
        copyreg.remove_extension("posix", "system", 7)


EVIL = f"""
import pathlib
pathlib.Path({MARK!r}).touch()

class Net:
    def __setstate__(self, state):
        run({MARK!r})

    def __del__(self):
        run({MARK!r})

class Reduced(Net):
    def __reduce__(self):
        return run, ({MARK!r},)

def run(name):
    pathlib.Path(name).touch()
"""


@pytest.mark.parametrize("kind", ["Net", "Reduced"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old form"])
def test_a_package_of_the_expected_name_is_never_imported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, zipped: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("site")
    (place / "onconet").mkdir()
    (place / "onconet" / "__init__.py").write_text(EVIL)
    (place / "onconet" / "models.py").write_text(EVIL)
    monkeypatch.syspath_prepend(place)
    import onconet.models  # type: ignore[import-not-found]

    assert (folder / MARK).exists()
    file = io.BytesIO()
    net = getattr(onconet.models, kind)()
    torch.save({"model": net, "other": [onconet.models.run]}, file, _use_new_zipfile_serialization=zipped)
    del net
    for name in ("onconet", "onconet.models"):
        del sys.modules[name]
    (folder / MARK).unlink()

    assert "no complete Mirai backbone" in refused(file.getvalue(), folder)
    assert not any(name.partition(".")[0] == "onconet" for name in sys.modules)


def test_an_archive_in_an_archive_is_not_opened(folder: Path) -> None:
    payload = RUNNING["REDUCE"][0]
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("archive/inner.pth", in_zip(payload))
    assert "neither safetensors nor a readable PyTorch file" in refused(outer.getvalue(), folder)

    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
    assert "weights.p is a tar archive: unpack it" in refused(outer.getvalue(), folder)

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("weights.pth"), None)
    assert "neither safetensors nor a readable PyTorch file" in refused(packed.getvalue(), folder)


def test_a_tensor_larger_than_its_file_is_refused(folder: Path) -> None:
    whole = io.BytesIO()
    torch.save({"a": torch.arange(4.0)}, whole)
    source = zipfile.ZipFile(whole)
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as archive:
        for entry in source.infolist():
            content = source.read(entry)
            # The shape (4,), and not the number of values in the storage, which stands before it.
            archive.writestr(entry, content.replace(b"QK\x00K\x04\x85", b"QK\x00K\x64\x85"))
    assert changed.getvalue() != whole.getvalue()
    assert "a tensor (100,) that lies outside its 4 values" in refused(changed.getvalue(), folder)


def test_the_registration_network_is_no_back_door(folder: Path) -> None:
    (folder / "weights.p").write_bytes(RUNNING["REDUCE"][0])
    with pytest.raises(CheckpointError, match=r"asks for posix\.system"):
        load_registration(folder / "weights.p")
    assert not (folder / MARK).exists()


@pytest.mark.parametrize("package", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old form"])
def test_numbers_of_every_numpy(folder: Path, package: str, zipped: bool) -> None:
    """A trained checkpoint of the benchmark: tensors, optimizer, and a best value that is a NumPy number."""
    import numpy as np

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    file = io.BytesIO()
    checkpoint = {
        "epoch": 3,
        "global_step": 12,
        "best_c_index": np.float64(0.7),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": None,
    }
    torch.save(checkpoint, file, _use_new_zipfile_serialization=zipped)
    written = b"numpy._core.multiarray" if b"numpy._core.multiarray" in file.getvalue() else b"numpy.core.multiarray"
    with pytest.raises(pickle.UnpicklingError, match="scalar"):
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    content = file.getvalue()
    if zipped:
        changed = io.BytesIO()
        with zipfile.ZipFile(file) as source, zipfile.ZipFile(changed, "w") as archive:
            for entry in source.infolist():
                archive.writestr(entry.filename, source.read(entry).replace(written, f"{package}.multiarray".encode()))
        content = changed.getvalue()
    else:
        content = content.replace(written, f"{package}.multiarray".encode())
    assert f"{package}.multiarray".encode() in content

    found = unpickle(content, folder / "x.pth")
    assert found["epoch"] == 3 and found["scheduler"] is None
    assert torch.equal(found["model"]["weight"], model.weight)
    assert named_tensors(found).keys() > {"model.weight", "optimizer.state.0.exp_avg"}


def test_what_state_dicts_may_hold(folder: Path) -> None:
    """Kinds of values that checkpoints have beside tensors."""
    from argparse import Namespace
    from collections import Counter, OrderedDict, defaultdict

    shared = torch.arange(6.0)
    held = {
        "args": Namespace(path=folder, device=torch.device("cpu"), dtype=torch.float16),
        "counts": Counter("aab"),
        "lists": defaultdict(list, {"a": [1]}),
        "order": OrderedDict([("b", torch.Size([1, 2]))]),
        "views": [shared[2:4], shared.view(2, 3).T, torch.empty(0, 3)],
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        "set": {1, 2},
    }
    torch.save(held, folder / "held.pth")
    found = read_file(folder / "held.pth")
    assert (found["counts"], found["lists"], found["order"]) == ({"a": 2, "b": 1}, {"a": [1]}, {"b": (1, 2)})
    assert all(torch.equal(a, b) for a, b in zip(found["views"], held["views"], strict=True))
    assert type(found["parameter"]) is torch.Tensor and found["parameter"].dtype == torch.bfloat16
    assert set(found["args"].attributes) == {"path", "device", "dtype"}
    assert os.listdir(folder) == ["held.pth"]  # noqa: PTH208
