"""Configuration: layers, short forms, and errors that point at file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from medtrain.config import Layers, RunConfig, SectionModel, locate, parse_value, read_toml
from medtrain.errors import ConfigError
from pydantic import Field


class Options(SectionModel):
    dropout: float = Field(0.1, ge=0, le=1)
    sizes: list[int] = Field([1, 2])


NET = {"net": Options}


def failure(layers: Layers, **options: type[SectionModel] | None) -> str:
    with pytest.raises(ConfigError) as caught:
        layers.build(options)
    return str(caught.value)


def test_later_layers_win_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[optimization]\nnum_epochs = 3\nlearning_rate = 0.5\n[data]\nbatch_size = 2\n")
    (tmp_path / "b.toml").write_text("optimization.num_epochs = 4\n")
    layers = Layers()
    layers.add({"optimization": {"num_epochs": 1, "weight_decay": 0.0}}, "preset")
    layers.add_file(tmp_path / "a.toml")
    layers.add_file(tmp_path / "b.toml")
    layers.add_assignment("data.batch_size=16", [])
    config = layers.build({})
    assert config.optimization.weight_decay == 0.0
    assert config.optimization.learning_rate == 0.5
    assert config.optimization.num_epochs == 4
    assert config.data.batch_size == 16


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("5", 5),
        ("1e-3", 1e-3),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"5"', "5"),
        ("plateau", "plateau"),
        ("a/b", "a/b"),
    ],
)
def test_values_of_set_are_toml_or_text(raw: str, value: object) -> None:
    assert parse_value(raw) == value
    assert type(parse_value(raw)) is type(value)


def test_plugin_options_have_a_short_form() -> None:
    layers = Layers()
    layers.add_assignment("net.dropout=0.5", ["net"])
    layers.add_assignment("plugins.net.sizes=[3]", ["net"])
    options = layers.build(NET).options("net")
    assert (options.dropout, options.sizes) == (0.5, [3])


def test_options_default_and_may_be_absent() -> None:
    config = Layers().build({"net": Options, "bare": None})
    assert config.options("net") == Options()
    assert "bare" not in config.plugins


@pytest.mark.parametrize("text", ["batch_size", "=5", "data..batch_size=5", ".x=1"])
def test_an_assignment_needs_a_key_and_a_value(text: str) -> None:
    with pytest.raises(ConfigError, match="write key=value"):
        Layers().add_assignment(text, [])


def test_an_unknown_key_names_file_line_and_the_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[data]\nbatch_size = 2\n\n[optimization]\n# twelve of them\nnum_epoch = 12\n")
    layers = Layers()
    layers.add_file(path)
    message = failure(layers)
    assert f"{path}:6: optimization.num_epoch: unknown key (did you mean 'num_epochs'?)" in message


def test_an_unknown_section_and_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("\n[optimisation]\nnum_epochs = 12\n")
    layers = Layers()
    layers.add_file(path)
    message = failure(layers)
    assert f"{path}:2: optimisation: unknown key (did you mean 'optimization'?)" in message


def test_an_unknown_key_without_neighbours_lists_what_there_is() -> None:
    layers = Layers()
    layers.add_assignment("validation.zzz=1", [])
    message = failure(layers)
    assert message == "Configuration:\n  - --set validation.zzz: validation.zzz: unknown key; known here: monitor"


def test_wrong_types_and_ranges_say_what_was_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[data]\nbatch_size = "many"\n[optimization]\nlearning_rate = -1.0\n')
    layers = Layers()
    layers.add_file(path)
    layers.add_assignment("scheduler.name=polynomal", [])
    message = failure(layers)
    assert f"{path}:2: data.batch_size: input should be a valid integer" in message
    assert "not 'many'" in message
    assert f"{path}:4: optimization.learning_rate: input should be greater than 0, not -1.0" in message
    assert "--set scheduler.name: scheduler.name: should be 'none', 'plateau', 'cosine', 'linear', " in message
    assert "(did you mean 'polynomial'?), not 'polynomal'" in message


def test_long_values_are_cut_in_messages() -> None:
    layers = Layers()
    layers.add({"run": {"seed": "x" * 500}}, "here")
    assert "x" * 60 in failure(layers)
    assert len(failure(layers)) < 250


def test_keys_inside_lists_of_tables_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[optimization.groups]]\npattern = "encoder.*"\nlr_scal = 0.1\n')
    layers = Layers()
    layers.add_file(path)
    message = failure(layers)
    assert "optimization.groups.0.lr_scal: unknown key (did you mean 'lr_scale'?)" in message
    assert str(path) in message


def test_errors_in_plugin_options_name_the_plugin() -> None:
    layers = Layers()
    layers.add_assignment("net.dropuot=0.5", ["net"])
    assert "plugins.net.dropuot: unknown key (did you mean 'dropout'?)" in failure(layers, net=Options)
    layers = Layers()
    layers.add_assignment("net.dropout=1.5", ["net"])
    assert "plugins.net.dropout: input should be less than or equal to 1" in failure(layers, net=Options)


def test_options_of_a_plugin_that_is_not_chosen() -> None:
    layers = Layers()
    layers.add({"plugins": {"nett": {"dropout": 0.1}}}, "file.toml")
    message = failure(layers, net=Options)
    assert "plugins.nett: this plugin is not part of the run (did you mean 'net'?); chosen: net" in message


def test_options_of_a_plugin_without_options() -> None:
    layers = Layers()
    layers.add({"plugins": {"bare": {"dropout": 0.1}}}, "file.toml")
    assert "plugins.bare: this plugin has no options" in failure(layers, bare=None)


def test_plugins_must_be_a_table() -> None:
    layers = Layers()
    layers.add({"plugins": "net"}, "file.toml")
    assert failure(layers) == "file.toml: plugins: a table of options by plugin is expected"


def test_a_section_that_is_no_table() -> None:
    layers = Layers()
    layers.add_assignment("data=5", [])
    assert "--set data: data:" in failure(layers)


def test_many_problems_are_counted() -> None:
    layers = Layers()
    layers.add({"data": {f"key{i}": i for i in range(11)}}, "file.toml")
    message = failure(layers)
    assert message.startswith("The configuration cannot be used:")
    assert message.endswith("... and 3 more")


def test_bad_toml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[data]\nbatch_size = = 2\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML: .*line 2"):
        read_toml(path)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such configuration file"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml: cannot be read"):
        read_toml(tmp_path / "binary.toml")


def test_a_resolved_configuration_survives_its_own_toml(tmp_path: Path) -> None:
    layers = Layers()
    for text in (
        "run.seed=7",
        "data.table=cohort.csv",
        "optimization.clip_grad_norm=1.5",
        "net.sizes=[4, 5]",
        'optimization.groups=[{pattern="a.*", lr_scale=0.1}, {pattern="b.*", weight_decay=0.0}]',
    ):
        layers.add_assignment(text, ["net"])
    layers.add({"run": {"plugins": ["net"]}}, "--plugin")
    config = layers.build(NET)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    again = Layers()
    again.add_file(path)
    assert again.build(NET) == config
    assert again.build(NET).to_toml() == config.to_toml()


def test_assigning_to_a_built_configuration_is_checked_too() -> None:
    config = RunConfig()
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        config.data.batch_size = 0


def test_lines_are_found_in_every_way_of_writing_a_key() -> None:
    text = 'a.b = 1\n[c]\n  d = 2\n"e" = 3\n[c.f]\ng = 4\n[[h]]\ni = 5\n'
    keys = {("a", "b"): 1, ("c",): 2, ("c", "d"): 3, ("c", "e"): 4, ("c", "f", "g"): 6, ("h",): 7, ("h", "i"): 8}
    assert {key: locate(text, key) for key in keys} == keys
    assert locate(text, ("c", "x")) is None
