"""Caches as the layer before would leave them, for few tokens, where the weights decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .cases import Case, make_experts, make_inputs
from .contenders import Contender, Weights
from .models import TINY

COLD_TOKENS = 32  # up to so many, a model of many layers does not find its weights in a cache
FILLER_BYTES = 2**30  # more than any last cache but the largest


def filler_bytes(tokens: Sequence[int]) -> int:
    """What reading away the caches takes, for these numbers of tokens."""
    return FILLER_BYTES if min(tokens) <= COLD_TOKENS else 0


class Cold:
    """Before a sample: none of the weights are in a cache, but the code that runs is."""

    def __init__(self, who: Sequence[Contender], dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._filler = torch.ones(FILLER_BYTES // 4, device=device)
        self._experts = make_experts(TINY.shape, dtype, device)
        self._runs, _ = Weights(self._experts).prepare(who)

    def of(self, tokens: int) -> Callable[[str], None]:
        """What to call, with a contender's name, before each of its samples."""
        inputs = make_inputs(TINY.shape, self._dtype, tokens, 0.0, self._device)
        case = Case(*inputs, self._experts, TINY.gating)

        def before(name: str) -> None:
            self._filler.sum()
            self._runs[name](case)

        return before
