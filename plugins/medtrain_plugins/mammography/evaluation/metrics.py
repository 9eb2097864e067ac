"""`RiskMetrics`: the metric of the risk models. Quick values every epoch, details for `medtrain eval`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from medtrain.errors import DataError
from medtrain.protocols import Array, Rows, Undefined

from medtrain_plugins.mammography.cohort.labels import N_YEARS
from medtrain_plugins.mammography.cohort.layouts import EMBED_CANCER_TYPES
from medtrain_plugins.mammography.evaluation.strata import (
    exam_rows,
    group_report,
    patient_rows,
    strata_report,
    unusable,
)
from medtrain_plugins.mammography.evaluation.survival import (
    KaplanMeier,
    c_index_reference,
    concordance_value,
    risk_comparisons,
)

if TYPE_CHECKING:
    from medtrain.protocols import Comparison

OPTIONAL_COLUMNS = ("exam_id", "laterality", "density", "race", "cancer_type", "time_gap")


class RiskMetrics:
    """C-index (time-dependent, the one to select models by), Uno's C and yearly AUCs of 5-year risks.

    primary_risk: outputs -> (B, 5) cumulative risks. train_event_times, train_event_observed: (N_train,) of the
    training group, whose censoring weights the pairs. replicates: of the bootstrap in `details`. cancer_types: names of
    the codes in the column `cancer_type`. reference: also give `c_index_reference`, the value the published benchmark
    computed. It is wrong (an uninformative model scores almost 1): use it only to reproduce published numbers, not to
    evaluate or select models.
    """

    names: tuple[str, ...] = ("c_index", "c_index_uno", *(f"auc_year_{year + 1}" for year in range(N_YEARS)))
    mode: Literal["max", "min"] = "max"

    def __init__(
        self,
        primary_risk: Callable[[Any], torch.Tensor],
        train_event_times: Array,
        train_event_observed: Array,
        replicates: int = 2000,
        cancer_types: Mapping[int, str] = EMBED_CANCER_TYPES,
        reference: bool = False,
    ) -> None:
        self.primary_risk = primary_risk
        self.censoring = KaplanMeier.of_censoring(train_event_times, train_event_observed).survival
        self.training_samples = len(train_event_times)
        self.replicates = replicates
        self.cancer_types = dict(cancer_types)
        self.reference = reference
        if reference:
            self.names = (*self.names, "c_index_reference")

    def rows(self, outputs: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """`risk` (B, 5) float32, `event_time` and `event_observed` (B,) int64, `patient_id`, and the optional columns.

        batch: `event_times`, `event_observed`, `patient_id`; optionally any of `OPTIONAL_COLUMNS`.
        """
        missing = [key for key in ("event_times", "event_observed", "patient_id") if key not in batch]
        if missing:
            raise DataError(f"the risk metrics need {', '.join(missing)} in each batch; let the dataset give them")
        return {
            "risk": self.primary_risk(outputs).float(),
            "event_time": batch["event_times"].long(),
            "event_observed": batch["event_observed"].long(),
            "patient_id": batch["patient_id"],
            **{key: batch[key] for key in OPTIONAL_COLUMNS if key in batch},
        }

    def compute(self, rows: Rows) -> dict[str, float]:
        """`c_index`, `c_index_uno`, `auc_year_1` ... `auc_year_5`, and `c_index_reference` if requested."""
        if (reason := unusable(rows)) is not None:
            return {name: Undefined(reason) for name in self.names}
        times, observed, risk = rows["event_time"], rows["event_observed"], rows["risk"]
        comparisons = risk_comparisons(times, observed, risk, self.censoring)
        values = {name: concordance_value(pairs, len(risk)) for name, pairs in comparisons.items()}
        if self.reference:
            survival = KaplanMeier.fit(times, observed).survival
            values["c_index_reference"] = c_index_reference(times, observed, risk, survival)
        return values

    def details(self, rows: Rows, seed: int) -> dict[str, Any]:
        """All values with confidence intervals, as plain JSON (None, with a reason, if undefined).

        Keys: `seed`, `replicates`, `censoring` (the weights' G by year), `units` (sample, exam, patient) and
        `strata` (of the samples), each a `group_report`. Equal rows and seeds give equal details.
        """
        report: dict[str, Any] = {
            "seed": seed,
            "replicates": self.replicates,
            "censoring": self.censoring.tolist(),
            "units": {},
            "strata": {},
        }
        if (reason := unusable(rows)) is not None:
            return {**report, "reason": reason}
        units = {"sample": rows}
        if "exam_id" in rows:
            units["exam"] = exam_rows(rows)
            units["patient"] = patient_rows(units["exam"])
        report["units"] = {
            unit: group_report(unit_rows, self.censoring, self.replicates, seed) for unit, unit_rows in units.items()
        }
        scores = report["units"]["sample"]
        report["intervals"] = {name: [value["low"], value["high"]] for name, value in scores["metrics"].items()}
        report["strata"] = strata_report(rows, self.censoring, self.replicates, seed, self.cancer_types)
        return report

    def compare(
        self, tables: Mapping[str, Rows], metrics: Mapping[str, RiskMetrics], seed: int, replicates: int
    ) -> Comparison:
        """Compares runs by exam and by patient, over the exams that all of them scored (`compare.compare_risks`)."""
        from medtrain_plugins.mammography.evaluation.compare import compare_risks

        return compare_risks(tables, metrics, seed, replicates)
