"""How sure a loss is: a one-sided interval over documents, and how much text would do."""

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

    The larger of two, a document's two losses together in both. Student's t with the jackknife's
    error of the ratio is right for few documents whose losses are normal. The bias-corrected and
    accelerated bootstrap (scipy.stats.bootstrap, fixed seed) is too narrow for few, but sees that
    losses are skewed. Neither is enough for few documents with heavy-tailed losses
    (docs/calibrate.md has the numbers).

    Args:
        nats, dropless: [documents] float64, losses of the same documents.
        confidence: of the interval, such as 0.95.

    Returns:
        The end, a fraction; inf where there is none, as for a single document.
    """
    import numpy as np

    some, base = nats.numpy(), dropless.numpy()
    if len(some) < 2:
        return math.inf
    estimate = float(some.sum() / base.sum()) - 1
    # Where nothing varies but by rounding nothing is uncertain, and the bootstrap has no answer.
    if np.allclose(some, base * (1 + estimate), rtol=_ROUNDING, atol=0):
        return estimate
    ends = _student(some, base, confidence), _bootstrap(some, base, confidence)
    return math.inf if any(map(math.isnan, ends)) else max(ends)


def _student(some: Any, base: Any, confidence: float) -> float:
    """The end by the jackknife: the ratio without each document in turn.

    A large document weighs more, so the degrees of freedom are those of as many equal documents as
    would have these weights' sum of squares (Kish's effective number).
    """
    from scipy.stats import t

    number = len(some)
    estimate = some.sum() / base.sum()
    without = (some.sum() - some) / (base.sum() - base)
    error = math.sqrt((number - 1) / number * float(((without - without.mean()) ** 2).sum()))
    equal = base.sum() ** 2 / (base**2).sum()
    return float(estimate - 1 + t.ppf(confidence, equal - 1) * error)


def _bootstrap(some: Any, base: Any, confidence: float) -> float:
    """The end by resampling documents."""
    import numpy as np
    from scipy.stats import DegenerateDataWarning, bootstrap

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
    return float(found.confidence_interval.high)


def text_needed(loss: float, upper: float, max_loss: float) -> float | None:
    """How many times as much text may show that ``loss`` is within ``max_loss``.

    An interval shrinks with the root of the number of documents. None where no text can: the loss
    itself is not within it, or the interval has no end.
    """
    if loss >= max_loss or not math.isfinite(upper):
        return None
    return max(1.0, ((upper - loss) / (max_loss - loss)) ** 2)
