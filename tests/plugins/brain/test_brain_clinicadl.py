"""The MAPS in clinicadl_maps was trained by ClinicaDL 2.0.0 on the images that `tree` makes again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from medtrain import Trainer
from medtrain.errors import CheckpointError, ConfigError, UsageError
from medtrain.rundir.checkpoint import load_model_file
from medtrain.rundir.directory import Maps
from medtrain_plugins.brain.clinicadl.import_maps import import_maps
from medtrain_plugins.brain.clinicadl.networks import NoCounterpartError, convert, counterpart
from medtrain_plugins.brain.commands.import_clinicadl import import_clinicadl
from medtrain_plugins.brain.model.networks import build_network
from medtrain_plugins.results.verify import verify

HERE = Path(__file__).parent
MAPS = HERE / "clinicadl_maps"
SIZE = 16


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clinicadl") / "bids"
    rng = np.random.default_rng(0)
    for number in range(16):
        participant = f"sub-{number:03d}"
        image = rng.standard_normal((SIZE, SIZE, SIZE)).astype("float32")
        image[4:-4, 4:-4, 4:-4] += number % 2
        folder = root / participant / "ses-M000" / "anat"
        folder.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"{participant}_ses-M000_T1w.nii.gz")
    described = {"Name": "made up", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    (root / "dataset_description.json").write_text(json.dumps(described))
    return root


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MAPS, tmp_path / "maps"))


def test_it_evaluates_image_by_image_as_clinicadl_did(tree: Path, tmp_path: Path) -> None:
    found = import_maps(MAPS, tmp_path / "run", images=tree)
    assert found.problems == [] and found.unplaced == [] and found.splits == [0, 1]
    assert not [checked for checked in verify(tmp_path / "run") if checked.problem]
    trainer = Trainer.from_maps(tmp_path / "run")
    for split in (0, 1):
        models = MAPS / f"training/split-{split}/models"
        for name, there in (("best-loss", "best_models/best-loss"), ("epoch-0001", "checkpoints/epoch-1")):
            rows = trainer.validate(split, checkpoint=name).rows
            table = pd.read_csv(models / there / "validation_metrics/details.tsv", sep="\t")
            wanted = table.set_index("participant_id")["loss"]
            likelihood = rows["probability"][np.arange(len(rows["label"])), rows["label"].astype(int)]
            np.testing.assert_allclose(-np.log(likelihood), wanted[list(rows["participant_id"])], atol=5e-5)
    tested = trainer.test("final", checkpoint="best-loss").metrics["loss"]
    results = MAPS / "test/group-final/results/split-0/best-loss/metrics/aggregated.tsv"
    assert tested == pytest.approx(pd.read_csv(results, sep="\t")["loss"][0], abs=5e-5)


def test_configuration_members_and_history(tree: Path, tmp_path: Path) -> None:
    import_maps(MAPS, tmp_path / "run", split=1, images=tree)
    maps = Maps.open(tmp_path / "run")
    (folder,) = maps.splits()
    assert folder.number == 1
    config = Trainer.from_maps(tmp_path / "run").config
    assert config.optimization.optimizer == "Adam" and config.optimization.learning_rate == 1e-2
    assert config.optimization.options["betas"] == [0.9, 0.999] and config.optimization.num_epochs == 2
    assert config.scheduler.name == "StepLR" and config.scheduler.options == {"step_size": 1, "gamma": 0.1}
    assert config.early_stopping.patience == 5 and config.early_stopping.monitor == "loss"
    assert config.data.batch_size == 2 and config.computational.deterministic and config.computational.amp == "no"
    options = config.options("brain")
    assert options.classes == ["0", "1"] and options.input_shape == [1, SIZE, SIZE, SIZE] and not options.standardize

    table = pd.read_csv(MAPS / "training/data/validation/split-1/data.tsv", sep="\t")
    groups = folder.membership()["groups"]
    assert groups["validation"]["participants"] == sorted(table["participant_id"])
    assert set(groups) == {"train", "validation", "final"}

    losses = pd.read_csv(MAPS / "training/split-1/logs/training_loss.tsv", sep="\t")["loss"].to_numpy()
    scores = pd.read_csv(MAPS / "training/split-1/validation_metrics/aggregated.tsv", sep="\t")
    history = folder.history()
    assert [record["train/loss"] for record in history] == pytest.approx(losses.reshape(2, 3).mean(axis=1))
    assert [record["validation/loss"] for record in history] == pytest.approx(scores["loss"])
    assert [record["step"] for record in history] == [3, 6]
    assert folder.status()["status"] == "completed" and folder.status()["best"]["value"] == scores["loss"].min()
    assert folder.best() == folder.checkpoint("best-loss")


def test_weights_start_a_run_and_are_not_resumed(tree: Path, tmp_path: Path) -> None:
    import_maps(MAPS, tmp_path / "run", split=0, images=tree)
    with pytest.raises(CheckpointError, match=r"ClinicaDL 2\.0 trained these weights"):
        Trainer.from_maps(tmp_path / "run", assignments=["optimization.num_epochs=3"]).resume()
    rows = Trainer.from_maps(tmp_path / "run").predict(str(tree), checkpoint="last")
    assert len(rows) == 16


def test_without_the_images_it_can_be_read(tmp_path: Path) -> None:
    found = import_maps(MAPS, tmp_path / "run")
    assert found.problems == [] and any("--images" in note for note in found.notes)
    assert not [checked for checked in verify(tmp_path / "run") if checked.problem]
    (folder, _) = Maps.open(tmp_path / "run").splits()
    assert len(folder.membership()["groups"]["train"]["samples"]) == 6
    with pytest.raises(UsageError, match="not recorded"):
        Trainer.from_maps(tmp_path / "run").evaluate("validation")


def test_a_network_without_a_counterpart_keeps_its_weights(damaged: Path, tree: Path, tmp_path: Path) -> None:
    described = json.loads((damaged / "model.json").read_text())
    described["network"] = {"name_": "CNN", "in_shape": [1, 16, 16, 16], "num_outputs": 1}
    (damaged / "model.json").write_text(json.dumps(described))
    state = {"network.mlp.output.linear.weight": torch.ones(1, 3), "loss.pos_weight": torch.ones(1)}
    for path in damaged.glob("training/**/model.pt"):
        torch.save(state, path)
    found = import_maps(damaged, tmp_path / "run", images=tree)
    assert found.problems == [] and found.unplaced == ["model.pt: loss.pos_weight"]
    assert any("CNN" in note for note in found.notes)
    kept = load_model_file(tmp_path / "run/split-0/last/model.safetensors")
    assert list(kept) == ["mlp.output.linear.weight"]
    with pytest.raises(ConfigError, match="there is no network 'CNN'"):
        Trainer.from_maps(tmp_path / "run").evaluate("validation")


def test_damage_is_told_file_by_file_and_the_rest_is_there(damaged: Path, tree: Path, tmp_path: Path) -> None:
    (damaged / "training/optimization.json").write_text('{"num_epochs": 2,')
    (damaged / "callbacks.json").unlink()
    (damaged / "training/split-0/models/final/model.pt").write_bytes(b"PK\x03\x04 cut short")
    (damaged / "training/split-0/logs/training_loss.tsv").unlink()
    (damaged / "training/split-0/validation_metrics/aggregated.tsv").write_text("epoch\tloss\n1\t0.5\n2\tx\n")
    settings = damaged / "training/split-0/computational.json"
    settings.write_text(settings.read_text().replace("}", ', "cudagraphs": true}'))
    found = import_maps(damaged, tmp_path / "run", split=0, images=tree)
    named = "\n".join(found.problems)
    for name in ("optimization.json", "callbacks.json", "models/final/model.pt", "training_loss.tsv"):
        assert named.count(name) == 1, named
    assert found.unplaced == ["training/split-0/computational.json: cudagraphs = true"]
    (folder,) = Maps.open(tmp_path / "run").splits()
    assert [record["validation/loss"] for record in folder.history()] == [0.5, None]
    assert folder.status()["status"] == "interrupted"
    assert not [checked for checked in verify(tmp_path / "run") if checked.problem]
    assert Trainer.from_maps(tmp_path / "run").evaluate("validation").metrics["loss"] > 0


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))


def test_no_pickle_is_executed(damaged: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in damaged.glob("training/**/model.pt"):
        torch.save({"network.x": Malicious()}, path)
    found = import_maps(damaged, tmp_path / "run", split=0, images=tree)
    assert sum("model.pt" in line for line in found.problems) == 3
    assert not (tmp_path / "executed").exists()


def test_what_is_no_maps_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for maps, split in ((tmp_path / "empty", None), (MAPS, 7)):
        with pytest.raises(UsageError):
            import_maps(maps, tmp_path / "run", split=split)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("")
    with pytest.raises(UsageError, match="already holds"):
        import_maps(MAPS, tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "taken"]


def test_the_command(tree: Path, tmp_path: Path, damaged: Path) -> None:
    arguments = [str(damaged), "--out", str(tmp_path / "run"), "--split", "0", "--images", str(tree)]
    result = CliRunner().invoke(import_clinicadl, arguments, standalone_mode=False)
    assert result.return_value == 0 and "Splits 0" in result.output
    (damaged / "metrics.json").unlink()
    result = CliRunner().invoke(import_clinicadl, [*arguments[:2], str(tmp_path / "two")], standalone_mode=False)
    assert result.return_value == 3 and "metrics.json: missing" in result.output


def test_a_res_net_is_the_same_here() -> None:
    golden = json.loads((HERE.parents[1] / "golden/clinicadl_resnet.json").read_text())
    found = counterpart(golden["network"], drops_sigmoid=False)
    network = build_network(found.network, "classification", [1, 32, 32], 2, found.options)
    network.load_state_dict(convert({k: torch.tensor(v) for k, v in golden["state"].items()}, found, False))
    with torch.no_grad():
        result = network.eval()(torch.linspace(-1, 1, 2048).reshape(2, 1, 32, 32))
    torch.testing.assert_close(result, torch.tensor(golden["output"]))


@pytest.mark.parametrize(
    "changes",
    [{"name_": "UNet"}, {"n_features": [4, 4], "n_res_blocks": [1, 1]}, {"output_act": "softmax"}, {"act": "prelu"}],
)
def test_networks_that_differ_are_not_taken_for_equal(changes: dict[str, object]) -> None:
    golden = json.loads((HERE.parents[1] / "golden/clinicadl_resnet.json").read_text())
    with pytest.raises(NoCounterpartError):
        counterpart(golden["network"] | changes, drops_sigmoid=False)
