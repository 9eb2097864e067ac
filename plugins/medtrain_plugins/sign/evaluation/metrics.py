"""Metrics of sign recognition: top-1, top-5, macro F1, and top-1 by signer; per sign for a finished model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from medtrain.protocols import Array, Rows, Undefined

TOP = 5
CONFUSIONS = 20


class SignMetrics:
    """Metrics of `logits` (B, C) against `label` (B,).

    signs: the sign of each class. signers: those with their own value. With five classes or fewer `top5` is 1.
    `macro_f1` is the mean F1 of the classes that occur among the true or the predicted ones; a class without a hit
    counts 0.
    """

    mode: Literal["max", "min"] = "max"
    target = "label"  # compared runs must agree on these

    def __init__(self, signs: Sequence[int], signers: Sequence[int]) -> None:
        self.signs, self.signers = list(signs), list(signers)
        self.names = ["top1", "top5", "macro_f1", *(f"top1_signer_{signer:02d}" for signer in self.signers)]

    def rows(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """By clip: `label` and `predicted`, classes; `rank` of the true class, from 0; `probability` of the predicted
        one; `sign` and `signer`."""
        probabilities = outputs["logits"].float().softmax(dim=1)
        # Stable, so that the first of equal classes comes first, on every device and in every batch.
        best = outputs["logits"].float().argsort(dim=1, descending=True, stable=True)
        return {
            "label": batch["label"],
            "predicted": best[:, 0],
            "rank": (best == batch["label"][:, None]).int().argmax(dim=1),
            "probability": probabilities.gather(1, best[:, :1])[:, 0],
            "sign": batch["sign"],
            "signer": batch["signer"],
        }

    def compute(self, rows: Rows) -> dict[str, float]:
        """`top1`, `top5`, `macro_f1`, `top1_signer_NN`; undefined without clips, or if the model diverged."""
        if (reason := _unusable(rows)) is not None:
            return {name: Undefined(reason) for name in self.names}
        hit = rows["rank"] == 0
        scores = per_class(rows, len(self.signs))
        occurs = scores["support"] + scores["predicted"] > 0
        values = {
            "top1": float(hit.mean()),
            "top5": float((rows["rank"] < TOP).mean()),
            "macro_f1": float(scores["f1"][occurs].mean()),
        }
        for signer in self.signers:
            mine = rows["signer"] == signer
            name = f"top1_signer_{signer:02d}"
            values[name] = float(hit[mine].mean()) if mine.any() else Undefined(f"no clips of signer {signer}")
        return values

    def details(self, rows: Rows, seed: int) -> dict[str, Any]:
        """Weighted F1, precision, recall, F1 and support of every sign, and the most frequent confusions."""
        if (reason := _unusable(rows)) is not None:
            return {"reason": reason}
        scores = per_class(rows, len(self.signs))
        table = [
            {"sign": sign, **{name: values[number].item() for name, values in scores.items() if name != "predicted"}}
            for number, sign in enumerate(self.signs)
        ]
        weighted = float((scores["f1"] * scores["support"]).sum() / scores["support"].sum())
        return {"weighted_f1": weighted, "signs": table, "confusions": self.confusions(rows)}

    def confusions(self, rows: Rows, count: int = CONFUSIONS) -> list[dict[str, int]]:
        """Pairs of a true and another predicted sign, the most frequent first; none without errors."""
        matrix = confusion_matrix(rows, len(self.signs))
        np.fill_diagonal(matrix, 0)
        flat = np.argsort(-matrix, axis=None, kind="stable")[:count]
        pairs = np.stack(np.unravel_index(flat, matrix.shape), axis=1)
        return [
            {"sign": self.signs[true], "predicted": self.signs[said], "clips": int(matrix[true, said])}
            for true, said in pairs.tolist()
            if matrix[true, said]
        ]


def confusion_matrix(rows: Rows, classes: int) -> Array:
    """Clips by true (row) and predicted (column) class: (classes, classes) int64, also for classes that are absent."""
    from sklearn import metrics

    matrix: Array = metrics.confusion_matrix(rows["label"], rows["predicted"], labels=np.arange(classes))
    return matrix


def per_class(rows: Rows, classes: int) -> dict[str, Array]:
    """`precision`, `recall`, `f1` (0 where undefined), `support` and `predicted` (clips), each (classes,)."""
    matrix = confusion_matrix(rows, classes)
    hits, support, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(support + predicted, 1),
        "support": support,
        "predicted": predicted,
    }


def _unusable(rows: Rows) -> str | None:
    """The reason why nothing can be computed from these rows, or None."""
    if not len(rows.get("rank", ())):
        return "no clips"
    bad = np.flatnonzero(~np.isfinite(rows["probability"]))
    if not len(bad):
        return None
    first = f" (first: {rows['sample_id'][bad[0]]})" if "sample_id" in rows else ""
    return f"the logits of {len(bad)} clips are not finite{first}"
