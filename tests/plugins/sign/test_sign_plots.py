"""The report of a sign model: right numbers under right names, whatever is absent, perfect or huge."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from medtrain.protocols.report import Section
from medtrain_plugins.results.report import make_folder, write_page
from medtrain_plugins.sign.data.signs import Sign
from medtrain_plugins.sign.data.synth import synthesize
from medtrain_plugins.sign.evaluation import plots
from PIL import Image
from sklearn.metrics import classification_report

ARABIC = ("مستشفى", "طبيب", "قلب")


def signs(count: int) -> list[Sign]:
    return [Sign(i + 11, f"{ARABIC[i % 3]} {i}", f"word {i}") for i in range(count)]


def rows(pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Rows of clips given as (true, predicted) class."""
    label, predicted = np.array(pairs).T
    wrong = (label != predicted).astype(int)
    signers = np.arange(len(pairs)) % 3 + 1
    return {
        "label": label,
        "predicted": predicted,
        "rank": 7 * wrong,
        "probability": np.full(len(pairs), 0.5),
        "signer": signers,
    }


def sections(found: dict[str, Any], names: list[Sign]) -> list[Section]:
    return [
        plots.sign_section(found, names),
        plots.confusion_section(found, names),
        plots.signer_section(found, len(names)),
    ]


def drawn(figure: Figure) -> tuple[int, int]:
    """Width and height in pixels of the figure, drawn without a warning."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(buffer, format="png", dpi=110)
    size: tuple[int, int] = Image.open(buffer).size
    return size


def test_scores_are_those_of_scikit_learn() -> None:
    pairs = [(0, 0), (0, 1), (1, 1), (1, 1), (3, 3), (3, 0), (3, 0)]  # class 2 is absent
    section = plots.sign_section(rows(pairs), signs(4))
    wanted: Any = classification_report(*np.array(pairs).T, labels=range(4), output_dict=True, zero_division=0.0)
    averages, table = section.tables.values()
    assert table["sign"].tolist() == [11, 14, 12]
    for _, line in table.iterrows():
        expected = wanted[str(line["sign"] - 11)]
        found = [line["precision"], line["recall"], line["f1"], line["clips"]]
        assert found == pytest.approx([expected[k] for k in ("precision", "recall", "f1-score", "support")])
    weighted = averages.set_index("average").loc["weighted (by clips)"].tolist()
    expected = wanted["weighted avg"]
    assert weighted == pytest.approx([expected[k] for k in ("precision", "recall", "f1-score")])
    # The absent class is in no average.
    macro = averages.set_index("average").loc["macro (signs alike)"].tolist()
    assert macro == pytest.approx([4 / 3 * wanted["macro avg"][k] for k in ("precision", "recall", "f1-score")])
    assert "1 of 4 signs have no clip" in section.text


def test_a_sign_that_is_only_predicted_has_no_recall() -> None:
    table = list(plots.sign_section(rows([(0, 1), (0, 0)]), signs(2)).tables.values())[1].set_index("sign")
    assert table.loc[12, "precision"] == 0 and np.isnan(table.loc[12, "recall"]) and np.isnan(table.loc[12, "f1"])
    assert table.loc[11, "precision"] == 1 and table.loc[11, "recall"] == 0.5


def test_confusions_name_the_right_signs_when_classes_are_absent() -> None:
    found = rows([(7, 7), (7, 9), (7, 9), (9, 7), (2, 2)])
    section = plots.confusion_section(found, signs(12))
    (table,) = section.tables.values()
    assert table["true sign"].tolist() == [18, 20] and table["predicted sign"].tolist() == [20, 18]
    assert table["true Arabic"][0] == f"{ARABIC[1]} 7" and table["predicted English"][0] == "word 9"
    assert table["clips"].tolist() == [2, 1] and table["of the true sign's"].tolist() == ["67%", "100%"]
    labels = [text.get_text() for text in section.figures["sign_confusions"].axes[0].get_yticklabels()]
    assert labels[0] == "18 word 7 → 20 word 9"
    assert section.text.startswith("3 of 5 clips were taken for another sign")


@pytest.mark.parametrize("count", [1, 3, 31, 502])
def test_a_perfect_model(count: int) -> None:
    found = sections(rows([(i, i) for i in range(count)]), signs(count))
    assert found[1].text == "No clip was taken for another sign." and not found[1].tables
    assert set(found[1].figures) == {"sign_confusion"}
    assert all(max(drawn(figure)) < 2000 for section in found for figure in section.figures.values())


def test_502_signs_of_which_most_are_confused(tmp_path: Path) -> None:
    pairs = [(i, (i * 7 + 3) % 502) for i in range(502) if i != 400] + [(i, i) for i in range(100)]
    found = sections(rows(pairs), signs(502))
    assert set(found[1].figures) == {"sign_confusion", "sign_confusion_worst", "sign_confusions"}
    for section in found:
        assert all(max(drawn(figure)) < 2000 for figure in section.figures.values())
        assert all(len(table) <= 30 for table in section.tables.values())
    named = [text.get_text() for text in found[1].figures["sign_confusion_worst"].axes[0].get_xticklabels()]
    assert len(named) == 31 and named[-1] == "other signs"
    make_folder(tmp_path)
    write_page(tmp_path, "signs", "", found)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<td>{ARABIC[0]} " in page and len(list((tmp_path / "plots").iterdir())) == 6


def test_names_are_drawn_as_they_are() -> None:
    names = [Sign(1, "", "costs $5 and $6"), Sign(2, "", "a name\nthat is far too long to be shown"), Sign(3)]
    assert plots.label(names[1]) == "2 a name that is far too…" and plots.label(names[2]) == "3"
    found = sections(rows([(0, 1), (1, 0), (2, 2)]), names)
    assert all(min(drawn(figure)) > 100 for section in found for figure in section.figures.values())


def test_signers() -> None:
    found = rows([(0, 0), (0, 0), (0, 1), (1, 1), (1, 0), (1, 1)])
    (table,) = plots.signer_section(found, 2).tables.values()
    assert table["signer"].tolist() == ["01", "02", "03"] and table["clips"].tolist() == [2, 2, 2]
    assert table["top-1"].tolist() == [1, 0.5, 0.5] and table["top-5"].tolist() == [1, 0.5, 0.5]


def test_training_curves() -> None:
    assert plots.training_figure([]) is None
    history = [{"epoch": 0, "learning_rate": 0.1}, {"epoch": 1, "learning_rate": 0.0, "validation/top1": None}]
    figure = plots.training_figure(history)
    assert figure is not None and not figure.axes[0].lines and drawn(figure)
    history[1] |= {"validation/top1": 0.5, "validation/macro_f1": 0.4}
    figure = plots.training_figure(history)
    assert figure is not None and [line.get_label() for line in figure.axes[0].lines] == ["top-1", "macro F1"]
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[2, 0.5]]  # type: ignore[union-attr]


def test_the_report_of_a_run(tmp_path: Path, trainer: Callable[..., Any]) -> None:
    folder = tmp_path / "data"
    synthesize(folder, range(2, 6), 6, seed=3)
    run = trainer("run", folder, "karsl.signs=2-5")
    run.train()
    run.evaluate("test")
    written = run.report()
    page = (written / "report.html").read_text(encoding="utf-8")
    for title in ("Signs", "Confusions", "Signers", "Training"):
        assert f"<h2>{title}</h2>" in page
    stems = {path.stem for path in (written / "plots").iterdir()}
    assert {"sign_f1", "sign_worst", "sign_confusion", "sign_signers", "sign_training"} <= stems
    run.run.evaluation.rows["probability"][0] = np.nan
    assert plots.sign_sections(run.run, run.config.options("karsl")) == []
