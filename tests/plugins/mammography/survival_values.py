"""Single values of survival metrics, which the plugin counts together with their bootstrap."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from medtrain_plugins.mammography.evaluation.survival import _auc_pairs, _uno_pairs, check_times, concordance_value

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[Any]


def uno_c_index(event_times: Array, event_observed: Array, risks: Array, censoring: FloatArray) -> float:
    """Uno's C (Uno et al. 2011) of the risk in the last column, truncated at tau = n_years.

    Comparable pairs are those of `c_index_td` whose case lies before tau; a pair weighs 1 / G(t_i)^2, at the
    case's time. The same number as `concordance_index_ipcw` of scikit-survival with 1-based times.

    Arguments and undefined values: as for `c_index_td`.
    """
    times, observed = check_times(event_times, event_observed, risks.shape[1])
    return concordance_value(_uno_pairs(times, observed, risks, censoring), len(risks))


def yearly_auc(event_times: Array, event_observed: Array, risks: Array) -> list[float]:
    """The area under the ROC curve of each year, n_years values; `Undefined` for a year with one class only.

    Cases until a year stand against everyone known to be free of cancer until then, later cases included;
    women lost before are left out.
    """
    times, observed = check_times(event_times, event_observed, risks.shape[1])
    return [concordance_value([_auc_pairs(times, observed, risks, year)], len(risks)) for year in range(risks.shape[1])]
