"""Trackers beside real runs: what they record, through interruptions, and that nothing they do reaches the training."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from medtrain import Trainer, hookimpl
from medtrain.config import Layers
from medtrain.errors import ConfigError
from medtrain.plugins import Plugins
from medtrain.rundir.checkpoint import load_model_file
from medtrain_plugins.tracking import TensorBoard, WandB

WANDB = "medtrain_plugins.tracking:WandB"
TENSORBOARD = "medtrain_plugins.tracking:TensorBoard"
TOY = ("run", "--plugin", "toy_plugin")
BOTH = ("--plugin", WANDB, "--plugin", TENSORBOARD)
ENTRIES = "[medtrain]\nwandb = medtrain_plugins.tracking.weights_biases:WandB\n"


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def wandb_rows(run: Path, kind: str = "history", split: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """(run id, row) of every history or summary record, in the order of the files."""
    from medtrain_plugins.tracking.wandb_files import records

    rows = []
    for path in sorted((run / f"split-{split}" / "tracking" / "wandb").glob("offline-run-*/*.wandb")):
        run_id = ""
        for record in records(path):
            if record.WhichOneof("record_type") == "run":
                run_id = record.run.run_id
            if record.WhichOneof("record_type") == kind:
                items = record.history.item if kind == "history" else record.summary.update
                rows.append((run_id, {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}))
    return rows


def events(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "split-0" / "tracking" / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return found


def train(out: Path, *trackers: Any, plugin: str = "toy_plugin", epochs: int = 2, **options: Any) -> None:
    """A run in this process."""
    layers = Layers()
    layers.add({"run": {"plugins": [plugin]}, "optimization": {"num_epochs": epochs}}, "test")
    layers.add({"computational": {"device": "cpu"}, "plugins": {plugin: options} if options else {}}, "test")
    config = layers.build(Plugins.of([plugin]).options())
    Trainer(out, plugins=[plugin], callbacks=trackers, config=config).train()


def history(run: Path) -> list[dict[str, Any]]:
    path = run / "split-0" / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def weights(run: Path) -> dict[str, list[Any]]:
    state = load_model_file(run / "split-0" / "last" / "model.safetensors")
    return {name: tensor.tolist() for name, tensor in state.items()}


def assert_one_history(run: Path, epochs: int) -> None:
    """W&B and TensorBoard hold every epoch of the run's own history once, with its numbers."""
    recorded = history(run)
    assert [record["epoch"] for record in recorded] == list(range(epochs))
    rows = wandb_rows(run)
    assert {run_id for run_id, _ in rows} == {json.loads((run / "split-0/tracking/wandb.json").read_text())["id"]}
    assert [row["epoch"] for _, row in rows] == [row["_step"] for _, row in rows] == list(range(epochs))
    found = events(run)
    for name in ("train/loss", "validation/loss", "validation/fit", "learning_rate"):
        assert [row[name] for _, row in rows] == [record[name] for record in recorded]
        scalars = found.Scalars(name)
        assert [scalar.step for scalar in scalars] == [record["step"] for record in recorded]
        assert [scalar.value for scalar in scalars] == pytest.approx([record[name] for record in recorded])
    assert [scalar.value for scalar in found.Scalars("epoch")] == list(range(epochs))


@pytest.mark.acceptance
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_run_has_one_history_under_one_id(
    medtrain: Any, tmp_path: Path, wait_for: Any, how: signal.Signals
) -> None:
    # `last` is renewed every third epoch only, so that epochs that were logged are trained a second time.
    settings = ["toy_plugin.wait=0.15", "checkpoint.last_every_n_epochs=3"]
    process = medtrain.start(*TOY, *BOTH, "--out", "run", "--epochs", "7", *[f"--set={s}" for s in settings])
    run = tmp_path / "run"
    wait_for(lambda: len(history(run)) == 5 or process.poll() is not None)
    process.send_signal(how)
    process.communicate()
    assert len(history(run)) < 7
    medtrain("resume", "run", "--set", "toy_plugin.wait=0")
    assert_one_history(run, 7)


@pytest.mark.acceptance
def test_a_run_killed_before_its_first_checkpoint_keeps_its_id(medtrain: Any, tmp_path: Path, wait_for: Any) -> None:
    settings = ["toy_plugin.wait=0.3", "checkpoint.last_every_n_epochs=0", "checkpoint.best=false"]
    process = medtrain.start(*TOY, *BOTH, "--out", "run", "--epochs", "3", *[f"--set={s}" for s in settings])
    run = tmp_path / "run"
    wait_for(lambda: len(history(run)) == 1 or process.poll() is not None)
    process.kill()
    process.communicate()
    before = (run / "split-0/tracking/wandb.json").read_text()
    medtrain("resume", "run", "--set", "toy_plugin.wait=0")
    assert (run / "split-0/tracking/wandb.json").read_text() == before
    assert_one_history(run, 3)


def test_every_promised_tag_can_be_read_back(tmp_path: Path) -> None:
    train(tmp_path / "run", TensorBoard(), plugin="medtrain.testing:ToyTask")
    found = events(tmp_path / "run")
    scalars = set(found.Tags()["scalars"])
    assert scalars >= {
        *("train/loss", "train/grad_norm", "validation/loss", "validation/accuracy", "learning_rate", "epoch"),
        *("learning_rate/rest", "gradients/norm", "gradients/norm/0", "gradients/norm/4"),
        *("memory/rss_mib", "throughput/samples_per_second"),
    }
    total, parts = found.Scalars("gradients/norm"), [found.Scalars(f"gradients/norm/{name}") for name in ("0", "4")]
    for step in range(len(total)):
        assert total[step].value == pytest.approx(sum(part[step].value ** 2 for part in parts) ** 0.5, rel=1e-5)
    assert {f"samples/{number}/image" for number in range(4)} <= set(found.Tags()["images"])
    table = found.Tensors("samples/predictions/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| sample | label | output logits |" in table and table.count("volume-") == 4
    config = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "[optimization]\nnum_epochs = 2" in config


@pytest.mark.acceptance
def test_wandb_gets_config_tags_group_and_the_best_value(medtrain: Any, tmp_path: Path) -> None:
    from medtrain_plugins.tracking.wandb_files import records

    named = tmp_path / "named-1.0.dist-info"
    named.mkdir()
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: named\nVersion: 1.0\n")
    (named / "entry_points.txt").write_text(ENTRIES.replace("wandb =", "wandb_again ="))
    medtrain.paths.append(str(tmp_path))
    (tmp_path / "mine.toml").write_text('[tracking.wandb_again]\nid = "mine"\nproject = "risk"\ntags = ["a", "b"]\n')
    options = ["--plugin", "wandb_again", "--config", "mine.toml", "--out", "run", "--epochs", "2"]
    medtrain(*TOY, *options, "--set", "tracking.wandb_again.notes=try")
    (path,) = (tmp_path / "run/split-0/tracking/wandb").glob("offline-run-*-mine/run-mine.wandb")
    (run,) = [record.run for record in records(path) if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.run_group, run.display_name, run.notes, list(run.tags)) == (
        *("risk", "run", "run", "try"),
        ["a", "b"],
    )
    assert not run.host
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["optimization"]["num_epochs"] == 2 and config["plugins"]["toy_plugin"]["samples"] == 23
    summary: dict[str, Any] = {}
    for _, update in wandb_rows(tmp_path / "run", "summary"):
        summary |= update
    best = max(history(tmp_path / "run"), key=lambda record: record["validation/fit"])
    assert summary["best/validation/fit"] == best["validation/fit"] and summary["best/epoch"] == best["epoch"]


def test_tracking_keys_are_checked_and_need_their_plugin(tmp_path: Path) -> None:
    options = {"wandb": WandB.options_model()}
    path = tmp_path / "mine.toml"
    path.write_text("[tracking.wandb]\nproject = 'risk'\nidd = 'x'\n")
    layers = Layers()
    layers.add_file(path)
    with pytest.raises(ConfigError, match=r"mine.toml:3: tracking.wandb.idd: unknown key \(did you mean 'id'\?\)"):
        layers.build(options)
    with pytest.raises(ConfigError, match=r"mine.toml:1: tracking.wandb: this plugin is not .*; add --plugin wandb"):
        layers.build({})
    with pytest.raises(ConfigError, match=r"write tracking.NAME.KEY = value"):
        layers.add_assignment("tracking.project=risk", [])
    path.write_text("[tracking.wandb]\nproject = 'risk'\n")
    layers = Layers()
    layers.add_file(path)
    layers.add_assignment("plugins.wandb.entity=a", ["wandb"])
    layers.add_assignment("tracking.wandb.entity=b", ["wandb"])
    assert (chosen := layers.build(options).options("wandb")).project == "risk" and chosen.entity == "b"


def test_trackers_change_nothing(tmp_path: Path) -> None:
    train(tmp_path / "plain", dropout=0.3)
    train(tmp_path / "both", WandB({"mode": "offline"}), TensorBoard({"gradient_interval": 1}), dropout=0.3)
    assert weights(tmp_path / "both") == weights(tmp_path / "plain")
    assert history(tmp_path / "both") == history(tmp_path / "plain")
    assert_one_history(tmp_path / "both", 2)


@pytest.mark.acceptance
def test_without_network_wandb_warns_once_and_records_offline(medtrain: Any, tmp_path: Path) -> None:
    train(tmp_path / "plain", dropout=0.3)
    # Nobody answers at this address.
    away = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "online"}
    (tmp_path / "limit.toml").write_text(f'[tracking."{WANDB}"]\ntimeout = 2\n')
    command = [*TOY, "--plugin", WANDB, "--config", "limit.toml", "--epochs", "2", "--set", "toy_plugin.dropout=0.3"]
    done = medtrain(*command, "--out", "away", **away)
    told = [line for line in (done.stdout + done.stderr).splitlines() if "W&B:" in line]
    assert len(told) == 1 and "recorded offline" in told[0], told
    assert weights(tmp_path / "away") == weights(tmp_path / "plain")
    assert [row["epoch"] for _, row in wandb_rows(tmp_path / "away")] == [0, 1]


class Blocker:
    """Puts a file where trackers want their folder."""

    @hookimpl
    def on_run_start(self, run: Any) -> None:
        (run.maps.path / "tracking").write_text("")


def test_a_folder_that_cannot_be_written_warns_once_per_tracker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "run", Blocker(), WandB(), TensorBoard())
    told = [record.getMessage() for record in caplog.records if record.name == "medtrain.tracking"]
    assert [message.partition(":")[0] for message in told] == ["W&B", "TensorBoard"]
    assert all(message in (tmp_path / "run/split-0/log.txt").read_text() for message in told)
    assert [record["epoch"] for record in history(tmp_path / "run")] == [0, 1]


@pytest.mark.acceptance
def test_two_processes_write_once(medtrain: Any, tmp_path: Path) -> None:
    medtrain(*TOY, *BOTH, "--out", "run", "--epochs", "3", "--nproc", "2", "--set", "data.batch_size=3")
    assert_one_history(tmp_path / "run", 3)
    assert len(list((tmp_path / "run/split-0/tracking/tensorboard").iterdir())) == 1
