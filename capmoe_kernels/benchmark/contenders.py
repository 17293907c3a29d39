"""Who is compared. Each gets the weights once, untimed, and then runs any number of cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import backends
from ..capacity import Capacity
from ..experts import Experts
from ..layer import moe
from .cases import Case
from .judge import OTHERS_OVER_LOOP, OURS_OVER_LOOP
from .loop import swiglu

Run = Callable[[Case], Tensor]


class Absent(Exception):  # noqa: N818  it says why
    """A contender cannot run here."""


class Weights:
    """A layer's experts, and the packed copy that those who want it share."""

    def __init__(self, experts: Experts) -> None:
        self.experts = experts

    @cached_property
    def packed(self) -> Experts:
        """Where there is no packed layout, the weights as they are."""
        return self.experts.pack() if has_packed(self.experts.down_proj.device) else self.experts

    def prepare(self, who: Sequence[Contender]) -> tuple[dict[str, Run], dict[str, str]]:
        """Runs by name, and of those who cannot run here the reason."""
        ready: dict[str, Run] = {}
        absent: dict[str, str] = {}
        for each in who:
            try:
                ready[each.name] = each.prepare(self)
            except Exception as error:  # other libraries raise what they like
                absent[each.name] = first_line(error)
        return ready, absent


def first_line(error: Exception) -> str:
    """Of what it says, or else its kind."""
    said = str(error).strip().splitlines()
    return said[0][:100] if said else type(error).__name__


class Contender(NamedTuple):
    """One row of the table.

    Attributes:
        key: what ``--contenders`` calls it.
        name: what the table calls it.
        prepare: weights to a run; raises Absent where it cannot.
        slack: how many times the loop's error its own may be.
        factor: of the capacity that bounds it; None: nothing does.
        dense: it computes no mixture, but one MLP of as many operations.
    """

    key: str
    name: str
    prepare: Callable[[Weights], Run]
    slack: int = OTHERS_OVER_LOOP
    factor: float | None = None
    dense: bool = False

    def rows(self, case: Case) -> int | None:
        """Rows that its experts compute, before a capacity; None: it has no experts."""
        if self.dense:
            return None
        per_token = case.experts.num_experts if self.key == ALL else case.gating.top_k
        return case.tokens * per_token


LOOP, ALL, DENSE = "loop", "all-experts", "dense"
KEYS = (DENSE, ALL, LOOP, "hf-eager", "hf-grouped", "plain", "packed", "capacity")


def has_packed(device: torch.device) -> bool:
    """Whether ``Experts.pack`` makes another layout for this device."""
    return device.type == "cpu" and backends().serving["cpu"] == "cpu"


def contenders(keys: Sequence[str], factors: Sequence[float], packs: bool) -> list[Contender]:
    """Those of ``keys`` in the table's order; the loop is always among them."""
    found = [
        Contender(DENSE, "dense MLP of the same FLOPs", _dense, dense=True),
        Contender(ALL, "every expert for every token", _all_experts),
        Contender(LOOP, "loop of F.linear", lambda _: lambda case: case.loop(), OURS_OVER_LOOP),
        Contender("hf-eager", "Transformers, eager", transformers("eager")),
        Contender("hf-grouped", "Transformers, grouped_mm", transformers("grouped_mm")),
        Contender("plain", "capmoe", _plain, OURS_OVER_LOOP),
        Contender("packed", "capmoe, packed", _packed, OURS_OVER_LOOP),
        *(_bounded(factor, packs) for factor in factors),
    ]
    return [each for each in found if each.key in keys or each.key == LOOP]


def _bounded(factor: float, packs: bool) -> Contender:
    capacity = Capacity(factor=factor)

    def prepare(weights: Weights) -> Run:
        experts = weights.packed
        return lambda case: moe(case.x, case.logits, experts, case.gating, capacity)

    # Runs are kept by their names, so factors that are not alike must not read alike.
    said = f"{factor:g}" if float(f"{factor:g}") == factor else repr(factor)
    name = f"capmoe, {'packed, ' if packs else ''}capacity {said}"
    return Contender("capacity", name, prepare, OURS_OVER_LOOP, factor)


def _plain(weights: Weights) -> Run:
    experts = weights.experts
    return lambda case: moe(case.x, case.logits, experts, case.gating)


def _packed(weights: Weights) -> Run:
    if not has_packed(weights.experts.down_proj.device):
        raise Absent("only the compiled CPU kernels have a packed layout")
    experts = weights.packed
    return lambda case: moe(case.x, case.logits, experts, case.gating)


def dense_weights(experts: Experts, top_k: int) -> tuple[Tensor, Tensor]:
    """[2kF, H] and [H, kF]: the memory of k experts, read as one MLP k times as wide."""
    up, down = experts.gate_up_proj[:top_k], experts.down_proj[:top_k]
    return up.reshape(-1, experts.hidden_size), down.reshape(experts.hidden_size, -1)


def _dense(weights: Weights) -> Run:
    return lambda case: swiglu(case.x, *dense_weights(weights.experts, case.gating.top_k))


def _all_experts(weights: Weights) -> Run:
    """What a mixture costs whose router saves nothing."""
    experts = weights.experts

    def run(case: Case) -> Tensor:
        out = torch.zeros_like(case.x)
        for expert, weight in enumerate(case.all_weights.unbind(1)):
            y = swiglu(case.x, experts.gate_up_proj[expert], experts.down_proj[expert])
            out.addcmul_(y, weight[:, None])
        return out

    return run


def transformers(implementation: str) -> Callable[[Weights], Run]:
    """A real model's experts, run by what its config names."""

    def prepare(weights: Weights) -> Run:
        if find_spec("transformers") is None:
            raise Absent("transformers is not installed")
        module = olmoe_experts(weights.experts, implementation)
        return lambda case: module(case.x, case.ids, case.weights)

    return prepare


def olmoe_experts(experts: Experts, implementation: str) -> Any:
    """Transformers' own module around these weights; raises Absent where it has none."""
    from transformers.models.olmoe import modeling_olmoe

    if not hasattr(modeling_olmoe, "OlmoeExperts"):
        raise Absent("this Transformers has no OlmoeExperts: it takes 5.0 or newer")
    num_experts, hidden, intermediate = experts.down_proj.shape
    config: Any = SimpleNamespace(
        num_experts=num_experts,
        num_local_experts=num_experts,
        hidden_size=hidden,
        intermediate_size=intermediate,
        hidden_act="silu",
        _experts_implementation=implementation,
    )
    with torch.device("meta"):
        module = modeling_olmoe.OlmoeExperts(config)
    for name in ("gate_up_proj", "down_proj"):
        weight = torch.nn.Parameter(getattr(experts, name), requires_grad=False)
        setattr(module, name, weight)
    return module
