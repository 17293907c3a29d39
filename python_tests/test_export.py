"""torch.export of layers: any number of tokens; parameters or packed weights; saved, loaded."""

from __future__ import annotations

import io

import pytest
import torch

import capmoe_kernels as cm
from cases import make_experts, normal
from checks import same_bits

E, H, F = 8, 16, 12
LENGTHS = (0, 1, 2, 65)
TOKENS = torch.export.Dim("tokens", min=0, max=4096)


class Layer(torch.nn.Module):
    """The experts' weights are parameters, or packed once."""

    def __init__(self, capacity, packed=False):
        super().__init__()
        self.router = torch.nn.Linear(H, E, bias=False)
        made = make_experts(E, H, F)
        self.packed = made.pack() if packed else None
        if not packed:
            self.gate_up_proj = torch.nn.Parameter(made.gate_up_proj)
            self.down_proj = torch.nn.Parameter(made.down_proj)
        self.requires_grad_(False)
        self.capacity = capacity

    def forward(self, tokens, mask):
        experts = self.packed or cm.Experts(self.gate_up_proj, self.down_proj)
        logits = self.router(tokens)
        return cm.moe(tokens, logits, experts, cm.Gating(2), self.capacity, token_mask=mask)


def arguments(count):
    return normal((count, H), seed=count), torch.arange(count) % 3 > 0


def export(layer):
    return torch.export.export(layer, arguments(24), dynamic_shapes=({0: TOKENS}, {0: TOKENS}))


def saved_and_loaded(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "capacity",
    [cm.Capacity(1.25), cm.Capacity(1.0, expand="rank", extra=2, max_experts_per_token=2)],
    ids=["drop", "expand"],
)
def test_saved_and_loaded(capacity, packed):
    layer = Layer(capacity, packed)
    program = saved_and_loaded(export(layer))
    targets = [str(node.target) for node in program.graph.nodes]
    assert [target for target in targets if "capmoe" in target] == ["capmoe.moe.default"]
    for count in LENGTHS:
        assert same_bits(program.module()(*arguments(count)), layer(*arguments(count)))


def test_parameters_stay_parameters():
    """A loaded program takes other weights, by the module's names."""
    program = saved_and_loaded(export(Layer(cm.Capacity(1.25)))).module()
    other = Layer(cm.Capacity(1.25))
    with torch.no_grad():
        other.down_proj.mul_(2)
    before = program(*arguments(33))
    program.load_state_dict(other.state_dict())
    after = program(*arguments(33))
    assert not torch.equal(before, after)
    assert same_bits(after, other(*arguments(33)))


class Steps(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = make_experts(E, H, F)

    def forward(self, tokens, logits):
        routing = cm.route(logits, cm.Gating(2), cm.Capacity(1.0), row_alignment=4)
        y = cm.grouped_mlp(cm.dispatch(tokens, routing), self.experts, routing)
        return cm.combine(y, routing), routing


def test_the_steps():
    """Every step's op, and the routing comes out as one."""
    steps = Steps()
    given = [(normal((count, H)), normal((count, E), seed=count)) for count in (24, *LENGTHS)]
    program = torch.export.export(steps, given[0], dynamic_shapes=({0: TOKENS}, {0: TOKENS}))
    for tokens, logits in given[1:]:
        out, routing = program.module()(tokens, logits)
        expected, decided = steps(tokens, logits)
        assert isinstance(routing, cm.Routing)
        assert same_bits(out, expected)
        assert all(same_bits(a, b) for a, b in zip(routing, decided, strict=True))
