"""How losses state themselves, so that they mean the same on one process and on many.

A loss is a callable `loss(outputs, batch)`. It returns

* a dict `name -> (sum, weight)`: `sum` a scalar tensor with graph, `weight` a scalar tensor or number, what the
  sum has to be divided by (for a masked loss the number of unmasked entries). The core adds sums and weights
  over processes and accumulation steps *before* dividing: the total is `sum_k sum(S_k) / sum(W_k)`. Factors
  between terms belong into the sums.
* one such pair, or a scalar tensor (the mean over the batch: its weight is the number of samples), or a dict of these.

A loss of pairs that is used with `optimization.accumulation_steps > 1` also has a method `weights(batch) ->
dict[str, Tensor]`, which gives the same weights before the forward pass: the denominator of a window must be
known before its first backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch


class Term(NamedTuple):
    """One term of a loss. is_mean: it was given as a mean over samples, so its weight is their number."""

    sum: torch.Tensor
    weight: torch.Tensor
    is_mean: bool


Terms = dict[str, Term]


def as_terms(result: Any, samples: int, device: torch.device, empty: bool = False) -> Terms:
    """Whatever a loss returned, as named terms. empty: the batch stands in for none, so sum and weight become 0."""
    named = result if isinstance(result, Mapping) else {"loss": result}
    terms: Terms = {}
    for name, value in named.items():
        is_mean = isinstance(value, torch.Tensor)
        total, weight = (value * samples, float(samples)) if is_mean else value
        if not isinstance(weight, torch.Tensor):
            weight = torch.tensor(float(weight), device=device)
        terms[name] = Term(total * 0, weight * 0, is_mean) if empty else Term(total, weight, is_mean)
    return terms
