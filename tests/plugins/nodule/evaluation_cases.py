"""Golden cases of the nodule evaluation, and made-up submissions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from medtrain_plugins.nodule.annotations.tables import Findings

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "nodule_evaluation.json").read_text())["cases"]


def names(group: str) -> list[str]:
    """The golden cases of a group."""
    return [name for name in GOLDEN if name.startswith(f"{group}.")]


def one_scan(case: dict[str, Any]) -> tuple[Findings, Findings, list[str]]:
    """Nodules, candidates and scans of a golden case; all of it lies in the first scan."""
    spacing = np.array(case["params"].get("spacing") or [1.0, 1.0, 1.0])
    truth = np.array(case["inputs"]["ground_truth_zyx"], dtype=float) * spacing
    found = case["inputs"]["detections"]
    centres = np.array([mark["center_zyx"] for mark in found], dtype=float) * spacing
    annotations = Findings.of(["A"] * len(truth), truth[:, ::-1], np.full(len(truth), 6.0))
    candidates = Findings.of(["A"] * len(found), centres[:, ::-1], score=[mark["confidence"] for mark in found])
    return annotations, candidates, [f"{'ABC'[i]}" for i in range(case["params"].get("num_images", 1))]


def submission(
    seed: int, scans: int = 40, nodules: int = 60, irrelevant: int = 120, marks: int = 1500, decimals: int | None = None
) -> tuple[Findings, Findings, Findings, list[str]]:
    """Annotations, candidates, irrelevant findings and scans: hits, second hits, marks on irrelevant findings and
    anywhere, overlapping and touching findings, rows of scans that are not evaluated, scans without anything.

    decimals: of the scores; few make many ties.
    """
    random = np.random.default_rng(seed)
    uids = [f"1.2.{i}" for i in range(scans)]
    busy = np.array([*uids[: scans - 3], "9.9"], dtype=object)

    def findings(count: int, measured: float) -> tuple[Any, Any, Any]:
        where = random.choice(busy, count)
        xyz = random.uniform(-30, 30, (count, 3)).round(1)
        return where, xyz, np.where(random.random(count) < measured, random.uniform(3, 25, count).round(1), -1.0)

    where, xyz, diameter = findings(nodules, 1.0)
    near, xyz_near, diameter_near = findings(irrelevant, 0.4)
    beside = min(nodules, irrelevant) // 4
    near[:beside], xyz_near[:beside] = where[:beside], xyz[:beside] + 3.0
    series, points, scores = [], [], []
    for uid, centres, quality in ((where, xyz, 1.5), (where, xyz, 1.0), (near, xyz_near, 0.4)):
        kept = random.random(len(uid)) < 0.7
        series.append(uid[kept])
        points.append(centres[kept] + random.normal(0, 2.5, (kept.sum(), 3)))
        scores.append(random.normal(quality, 1, kept.sum()))
    elsewhere = max(0, marks - sum(map(len, series)))
    series.append(random.choice(busy, elsewhere))
    points.append(random.uniform(-60, 60, (elsewhere, 3)))
    scores.append(random.normal(0, 1, elsewhere))
    order = random.permutation(sum(map(len, series)))
    score = 1 / (1 + np.exp(-np.concatenate(scores)))[order]
    return (
        Findings.of(where, xyz, diameter, name="annotations"),
        Findings.of(
            np.concatenate(series)[order],
            np.concatenate(points)[order],
            score=score if decimals is None else score.round(decimals),
            name="candidates",
        ),
        Findings.of(near, xyz_near, diameter_near, name="excluded"),
        uids,
    )


def as_tuples(findings: Findings) -> list[tuple[str, float, float, float, float]]:
    """Rows as the oracle takes them."""
    last = findings.diameter if findings.score is None else findings.score
    return [
        (uid, *xyz, value)
        for uid, xyz, value in zip(findings.series, findings.xyz.tolist(), last.tolist(), strict=True)
    ]
