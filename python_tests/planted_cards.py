"""Probes of the cards that the gate writes and select reads, for bugs that are planted in them."""

from __future__ import annotations

import math
from unittest import mock

import capmoe_kernels as cm
import cuda_gate
import planted_routing as on
from cases import router_logits
from cuda_gate import Ask


def few_cards(seed):
    """Fewer columns than lanes of a row; extra ones, so that first ones are told apart."""
    entries = on.only_entry(f"gate_kernel<{on.BY_LOGIT}>")
    ask = Ask(cm.Gating(4), expand="rank", extra=3)
    with mock.patch.object(cuda_gate, "entries", return_value=entries):
        cuda_gate.check_cards(router_logits(37, 60, "levels"), ask, seed)


def cards_of_unused(seed):
    """Columns of a token that may ask for one expert only: they are nobody's, and on no card."""
    logits = router_logits(37, 60, "levels")
    logits[3, 1:] = -math.inf
    entries = on.only_entry(f"gate_kernel<{on.BY_LOGIT}>")
    with mock.patch.object(cuda_gate, "entries", return_value=entries):
        cuda_gate.check_cards(logits, Ask(cm.Gating(4)), seed)


def cards_of_two_columns(seed):
    """Of six experts; the second column may be an extra one; tokens may ask for one, or none."""
    logits = router_logits(70, 6, "levels")
    logits[:40, 2], logits[33, :5], logits[66] = 9.0, -math.inf, -math.inf
    entries = on.only_entry("gate_kernel<float, GateLayout<1, 8, 2>, false>")
    for gating, options in ((cm.Gating(1), {"expand": "rank", "extra": 1}), (cm.Gating(2), {})):
        with mock.patch.object(cuda_gate, "entries", return_value=entries):
            cuda_gate.check_cards(logits, Ask(gating, **options), seed)
            cuda_gate.check(logits, Ask(gating, **options), seeds=(seed,))


def asks_on_cards(seed):
    """A warp or the block lists the keys, or nobody can."""
    for listed in (600, 120, 5):
        asked = on.asking(1100, 4, 2, cm.Capacity(limit=250), 9)
        on.check_select(asked, seed, listed=listed, blocks=1, cards=True)
