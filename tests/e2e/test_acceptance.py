"""Long lines: real mammograms at 512 x 416; two processes against one on the masked loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1800)]

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "mammograms"


def real_cohort(folder: Path) -> None:
    """The four real images as the current exam of four women, warped copies of them as the prior exam."""
    import scipy.ndimage

    rows = []
    for woman, group in enumerate(["train", "train", "val", "test"]):
        (folder / group).mkdir(parents=True, exist_ok=True)
        for path in sorted(REAL.glob("exam0_*.png")):
            side, view = path.stem.split("_")[1].split("-")
            pixels = np.asarray(Image.open(path)).astype(np.float32)
            pixels = pixels[:: max(1, pixels.shape[0] // 512), :: max(1, pixels.shape[1] // 416)]
            pixels = pixels * (65535 / pixels.max()) * (1 - 0.05 * woman)
            shifted = scipy.ndimage.shift(pixels, (6 + woman, -4), order=1)
            for date, image in (("2015-03-01", shifted), ("2016-05-01", pixels)):
                name = f"{100 + woman}_{side}_{view}_{date}_0.png"
                full = np.zeros((800, 640), dtype=np.uint16)
                height, width = min(800, image.shape[0]), min(640, image.shape[1])
                full[:height, :width] = image[:height, :width].clip(0, 65535).astype(np.uint16)
                Image.fromarray(full).save(folder / group / name)
                case = woman % 2 == 0
                rows.append([100 + woman, side, view, date, 2 if case else "", 2 if case else 5, 2, 0 if case else ""])
    columns = ["patient_id", "ImageLateralityFinal", "view", "study_date_anon", "Time_to_Cancer_Years"]
    columns += ["years_last_followup", "density", "path_severity"]
    pd.DataFrame(rows, columns=columns).assign(RACE_DESC="Asian").to_csv(folder / "cohort.csv", index=False)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real mammograms are not here")
def test_real_mammograms_train_evaluate_and_predict(medtrain: Any, tmp_path: Path) -> None:
    from medtrain_plugins.mammography.model.registration import MammoRegNet
    from safetensors.torch import save_file

    real_cohort(tmp_path / "cohort")
    torch.manual_seed(0)
    save_file(MammoRegNet().state_dict(), tmp_path / "registration.safetensors")
    settings = [
        "lmv_net.image_size=[512, 416]",
        "lmv_net.registration=registration.safetensors",
        "lmv_net.encoder_weights=none",
        "lmv_net.bootstrap_replicates=50",
        "data.batch_size=2",
        "optimization.num_epochs=2",
    ]
    options = [f"--set={setting}" for setting in settings]
    result = medtrain(
        "run", "--plugin", "lmv_net", *options, "--data", "cohort", "--out", "run", timeout=900, OMP_NUM_THREADS="2"
    )
    print(result.stdout)
    history = [json.loads(line) for line in (tmp_path / "run/split-0/history.jsonl").read_text().splitlines()]
    assert len(history) == 2 and all(np.isfinite(record["train/loss"]) for record in history)
    print(medtrain("eval", "run", timeout=300, OMP_NUM_THREADS="2").stdout)
    medtrain("predict", "run", "cohort/test", "--out", "risks.csv", timeout=300, OMP_NUM_THREADS="2")
    risks = pd.read_csv(tmp_path / "risks.csv")
    assert len(risks) == 2 and risks["risk_year_5"].between(0, 1).all()
    before = load_file(tmp_path / "registration.safetensors")
    after = load_file(tmp_path / "run/split-0/last/model.safetensors")
    prefix = "longitudinal_feat_processor.mammo_reg_net."
    assert all(torch.equal(after[prefix + key], value) for key, value in before.items()), "frozen means frozen"


FROZEN_NORM = '''
"""LMV-Net with batch norms frozen and dropout off: one process and two are then comparable to the last digit."""
import hashlib
import json
import os

import torch
from medtrain import hookimpl


@hookimpl
def build_model(config):
    from medtrain_plugins.lmv_net import LMVNetPlugin

    model = LMVNetPlugin().build_model(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.requires_grad_(False)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # that of the time encoding too, which no option reaches
    if os.environ["ARITHMETIC"] == "float64":
        model = model.double()
        model.register_forward_pre_hook(lambda module, inputs: (as_double(inputs[0]),))
    return model


def as_double(batch):
    return {key: value.double() if torch.is_tensor(value) else value for key, value in batch.items()}


@hookimpl
def build_optimizer(config, model):
    # Adam divides a gradient by its own size: in float32 it makes steps of rounding errors.
    if os.environ["ARITHMETIC"] == "float32":
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.SGD(parameters, lr=2e-4, momentum=0.9)


@hookimpl
def on_step_end(run):
    with open(f"rates-{os.environ.get('RANK', '0')}.jsonl", "a") as file:
        file.write(json.dumps([run.step, run.optimizer.param_groups[0]["lr"]]) + "\\n")


@hookimpl
def on_run_end(run):
    digest = hashlib.sha256()
    for value in run.model.state_dict().values():
        digest.update(value.numpy().tobytes())
    with open(f"digest-{os.environ.get('RANK', '0')}.txt", "w") as file:
        file.write(digest.hexdigest())
'''


@pytest.mark.parametrize("arithmetic", ["float32", "float64"])
def test_two_processes_equal_one(medtrain: Any, tmp_path: Path, arithmetic: str) -> None:
    """2 x batch 4 against 1 x batch 8: 50 steps, odd-sized groups, dropout off, batch norm frozen."""
    from medtrain_plugins.mammography.synthetic.synth import synthesize

    synthesize(tmp_path / "cohort", patients=30, seed=5, image_size=(64, 64))
    settings = [
        "lmv_net.image_size=[64, 64]",
        "lmv_net.dropout=0.0",
        "lmv_net.drop_path=0.0",
        "lmv_net.augmentation=true",
        "optimization.learning_rate=1e-5",
        "optimization.clip_grad_norm=1.0",
        "scheduler.name=plateau",
        "scheduler.warmup_steps=10",
        "scheduler.patience=0",
        "checkpoint.best=false",
        "checkpoint.last_every_n_epochs=0",
    ]
    histories, weights = {}, {}
    for name, batch, nproc in (("one", 8, 1), ("two", 4, 2)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "frozen").mkdir()
        (folder / "frozen" / "__init__.py").write_text("")
        (folder / "frozen" / "norm.py").write_text(FROZEN_NORM)
        medtrain.folder = folder
        medtrain.paths.append(str(folder))
        options = [f"--set={s}" for s in [*settings, f"data.batch_size={batch}"]]
        options += ["--preset=demo", "--epochs=7", f"--nproc={nproc}", "--data", tmp_path / "cohort", "--out", "run"]
        medtrain("run", "--plugin", "lmv_net", "--plugin", "frozen.norm", *options, timeout=1500, ARITHMETIC=arithmetic)
        medtrain.paths.pop()
        lines = (folder / "run/split-0/history.jsonl").read_text().splitlines()
        histories[name] = [json.loads(line) for line in lines]
        weights[name] = load_file(folder / "run/split-0/last/model.safetensors")
    one, two = histories["one"], histories["two"]
    assert one[-1]["step"] == two[-1]["step"] >= 50
    worst = {}
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            if isinstance(value, float):
                worst[key] = max(worst.get(key, 0.0), abs(value - second[key]))
    distance = max(float((weights["one"][k] - weights["two"][k]).abs().max()) for k in weights["one"])
    print(f"\n{arithmetic}: steps {one[-1]['step']}, largest difference of weights {distance:.2e}, of records: {worst}")
    assert (tmp_path / "one/rates-0.jsonl").read_text() == (tmp_path / "two/rates-0.jsonl").read_text()
    assert (tmp_path / "two/rates-0.jsonl").read_text() == (tmp_path / "two/rates-1.jsonl").read_text()
    assert (tmp_path / "two/digest-0.txt").read_text() == (tmp_path / "two/digest-1.txt").read_text()
    assert all(value <= 1e-6 for key, value in worst.items() if key != "train/grad_norm"), worst
    assert distance <= 1e-5
