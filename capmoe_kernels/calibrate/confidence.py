"""How sure a loss is: a one-sided bootstrap over documents, and how much text would do."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor

_RESAMPLES = 9999
_SEED = 0
_ROUNDING = 1e-12


def upper_limit(nats: Tensor, dropless: Tensor, confidence: float) -> float:
    """Upper end of the one-sided confidence interval of the relative loss.

    Documents are resampled, a document's two losses together; bias-corrected and accelerated
    (scipy.stats.bootstrap), with a fixed seed.

    Args:
        nats, dropless: [documents] float64, losses of the same documents.
        confidence: of the interval, such as 0.95.
    """
    import numpy as np
    from scipy.stats import DegenerateDataWarning, bootstrap

    some, base = nats.numpy(), dropless.numpy()
    estimate = float(some.sum() / base.sum()) - 1
    # Where nothing varies but by rounding nothing is uncertain, and the bootstrap has no answer.
    if np.allclose(some, base * (1 + estimate), rtol=_ROUNDING, atol=0):
        return estimate

    def relative(changed: Any, unchanged: Any, axis: int = -1) -> Any:
        return np.sum(changed, axis) / np.sum(unchanged, axis) - 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (some, base),
            relative,
            n_resamples=_RESAMPLES,
            batch=max(1, 10**7 // len(some)),
            vectorized=True,
            paired=True,
            confidence_level=confidence,
            alternative="less",
            method="BCa",
            random_state=np.random.default_rng(_SEED),
        )
    upper = float(found.confidence_interval.high)
    return math.inf if math.isnan(upper) else upper


def text_needed(loss: float, upper: float, max_loss: float) -> float | None:
    """How many times as much text may show that ``loss`` is within ``max_loss``.

    An interval shrinks with the root of the number of documents. None where no text can: the loss
    itself is not within it, or the interval has no end.
    """
    if loss >= max_loss or not math.isfinite(upper):
        return None
    return max(1.0, ((upper - loss) / (max_loss - loss)) ** 2)
