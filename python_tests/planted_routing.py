"""Probes of the kernels of gate, mark, select and route, for bugs that are planted in them."""

from __future__ import annotations

import math
import re
import sys
from functools import partial
from unittest import mock

import pytest
import torch

import capmoe_kernels as cm
import cuda_gate
import cuda_route as cr
import cuda_select as cs
from cases import normal, router_logits
from checks import same_bits
from cuda_gate import Ask
from cuda_on_cpu.options import Options
from cuda_sources import compiled, folder, per_sources


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """What hangs hangs within a second, and mark.cu, which includes little, is seldom compiled."""
    module = sys.modules["cuda_on_cpu.emulate"]  # the package has a function of that name
    monkeypatch.setattr(module, "Options", partial(Options, max_steps=2_000_000))
    compile_it, text = cs.mark_kernel, (folder() / "mark.cu").read_text()
    right = {id_type: compile_it(id_type) for id_type in ("int32_t", "int64_t")}

    def mark_kernel(id_type: str):
        planted = (folder() / "mark.cu").read_text() != text
        return compile_it(id_type) if planted else right[id_type]

    monkeypatch.setattr(cs, "mark_kernel", mark_kernel)


@per_sources
def only_entry(kernel: str) -> dict[str, str]:
    """PTX of gate.cu with this one instance of its kernel: its launchers would make every one."""
    text, *launchers = (folder() / "gate.cu").read_text().split("\ntemplate void gate(")
    assert launchers
    use = f"const void* use() {{ return reinterpret_cast<const void*>({kernel}); }}"
    ptx = compiled(f"{text}\n{use}\n}}  // namespace capmoe::cuda\n")
    return {re.search(r"\.entry (\w+)", ptx)[1]: ptx}


def check_gate(arguments: str, logits, ask, seed) -> None:
    """cuda_gate.check() under one schedule. arguments: of gate_kernel's template."""
    entries = only_entry(f"gate_kernel<{arguments}>")
    with mock.patch.object(cuda_gate, "entries", return_value=entries):
        cuda_gate.check(logits, ask, seeds=(seed,))


# The gate. Most logits tie.
BY_LOGIT, BY_SCORE = "float, GateLayout<8, 8>, false", "float, GateLayout<8, 8>, true"


def extra_candidates(seed):
    """Fewer columns than lanes of a row."""
    ask = Ask(cm.Gating(4, renormalize="topk"), expand="rank", extra=3)
    check_gate(BY_LOGIT, router_logits(37, 60, "levels"), ask, seed)


def many_columns(seed):
    ask = Ask(cm.Gating(9, renormalize="topk"), expand="rank", extra=11)
    check_gate(BY_LOGIT, router_logits(37, 60, "levels"), ask, seed)


def local_candidates(seed):
    """Of experts 5 to 22; all of them forbidden to one token, and all experts to another."""
    logits = router_logits(37, 60, "levels")
    logits[3, 5:23] = logits[4] = -math.inf
    ask = Ask(cm.Gating(4, renormalize="topk"), expand="local", local=(5, 23))
    check_gate(BY_LOGIT, logits, ask, seed)


def bias_and_groups(seed):
    """Three groups, two lanes each; two of every token's tie, and all of one token's."""
    gating = cm.Gating(4, num_groups=3, topk_groups=2, group_score="top2_sum", scoring="sigmoid")
    logits = router_logits(37, 60, "distinct") / 4
    logits[:, 40:] = logits[:, 20:40]
    logits[7] = 0.0
    bias = normal((20,), seed=6).repeat(3)
    check_gate(BY_SCORE, logits, Ask(gating, bias), seed)


def no_16_bytes(seed):
    """Rows of 122 bytes."""
    logits = router_logits(37, 61, "levels").bfloat16()
    logits[2, 5] = math.inf
    check_gate("__nv_bfloat16, GateLayout<8, 8>, false", logits, Ask(cm.Gating(6)), seed)


def beyond_registers(seed):
    logits = router_logits(33, 513, "levels")
    logits[1, 4:] = -math.inf
    gating = cm.Gating(8, renormalize="topk", scoring="sigmoid", num_groups=27, topk_groups=9)
    cuda_gate.check(logits, Ask(gating, expand="local", local=(5, 9)), seeds=(seed,))


# select, and the marks that it starts from.


def asking(tokens, experts, columns, capacity, levels=None, **options) -> cs.Asked:
    """Distinct experts per token, lower ones more popular. levels: scores of so many values."""
    g = torch.Generator().manual_seed(tokens)
    noise = torch.randn(tokens, experts, generator=g) + torch.linspace(2, 0, experts)
    ids = noise.argsort(dim=1, descending=True)[:, :columns].int().contiguous()
    weights, scores = (torch.rand(tokens, columns, generator=g) for _ in range(2))
    if levels is not None:
        scores = (scores * levels).round() / levels
    return cs.Asked(ids, weights, scores, experts, capacity, **options)


def check_select(asked: cs.Asked, seed: int, **launch) -> None:
    asked.assert_selected(asked.run(seed=seed, **launch))


def few_asks(seed):
    """A warp lists an expert's keys: most tie, or all."""
    for limit, levels in ((7, 3), (33, 3), (7, 0.1)):
        check_select(asking(90, 6, 3, cm.Capacity(limit=limit), levels=levels), seed)


def other_policies(seed):
    for policy in ("keep_first", "keep_last", "random"):
        capacity = cm.Capacity(limit=20, policy=policy, seed=2**40 + 7)
        check_select(asking(90, 6, 3, capacity), seed)


def longer_than_lists(seed):
    """Some warps list their expert's keys, or the block lists them, or nobody can."""
    for listed in (600, 120, 5):
        check_select(asking(1100, 4, 2, cm.Capacity(limit=250), 9), seed, listed=listed, blocks=1)


def more_experts_than_warps(seed):
    """A warp counts 16 rows at once, beyond the last one too, and can list none."""
    check_select(asking(150, 20, 4, cm.Capacity(limit=20), 9, top_k=2), seed, blocks=1, listed=5)


def long_rows(seed):
    """A budget of 1088 words, which a block counts; nothing ranks a token but its number."""
    capacity = cm.Capacity(factor=0.5, scope="device", experts_per_device=64)
    check_select(asking(520, 64, 2, capacity, levels=0.1, top_k=1), seed, blocks=2)


def devices_with_classes(seed):
    """Experts share a budget; priorities of both signs, candidates beyond the top two, a mask."""
    capacity = cm.Capacity(factor=0.5, scope="device", experts_per_device=3)
    classes, mask = torch.arange(130) % 3 - 1, torch.arange(130) % 5 != 2
    more = {"token_priority": classes, "token_mask": mask, "topk_first": True, "top_k": 2}
    for listed in (512, 20):
        check_select(asking(130, 6, 4, capacity, 1, **more), seed, listed=listed)


def rerouting(seed):
    """And no token keeps more than two, chosen by scores that tie; scores may be negative."""
    asked = asking(130, 8, 6, cm.Capacity(factor=0.9, max_experts_per_token=2), 3, top_k=3)
    asked.rounds, asked.scores = 3, asked.scores - 0.5
    check_select(asked, seed)


def aligned_rows(seed):
    """Rows of experts are padded, tokens' weights rescaled; experts are no multiple of 32."""
    options = {"row_alignment": 8, "kept_weight_sum": 2.0}
    check_select(asking(130, 60, 3, cm.Capacity(factor=1.0), **options), seed)


def short_buffer(seed):
    """Of a caller: fewer rows than are kept."""
    asked = asking(70, 4, 2, cm.Capacity())
    expected = asked.expected()
    asked.__class__ = type("Short", (cs.Asked,), {"num_rows": 50})
    for name, value in asked.run(seed=seed).items():
        assert same_bits(value, expected[name][: len(value)]), name


def ids_of_a_caller(seed):
    """Repeats, numbers that are no expert's, more columns than a warp has lanes, and fewer."""
    for columns in (3, 33):
        asked = asking(70, 40, columns, cm.Capacity(limit=9), top_k=2)
        asked.ids[::3, 1:] = asked.ids[::3, :1].clone()
        asked.ids[::4, 0], asked.ids[::5, -1] = -1, 40
        check_select(asked, seed)


def without_repeats(seed):
    """Pairs in fours, of two tokens or of one; more tokens than a block takes at a time."""
    for columns, dtype in ((3, torch.int32), (4, torch.int64)):
        asked = asking(401, 12, columns, cm.Capacity(limit=90))
        asked.ids[::4, 0], asked.ids[::5, -1] = -1, 12
        asked.ids = asked.ids.to(dtype)
        check_select(asked, seed, repeats=False)


def unaligned_weights(seed):
    """They begin between two places of 16 bytes."""
    asked = asking(40, 12, 4, cm.Capacity(limit=9))
    asked.weights = torch.arange(161.0)[1:].view(40, 4)
    check_select(asked, seed, repeats=False)


def apart(seed):
    """Blocks that wait for none; rows of five words, and candidates beyond the first."""
    options = {"row_alignment": 8, "top_k": 1}
    check_select(asking(150, 12, 3, cm.Capacity(), **options), seed, warps=0)


# route.


def check_route(tokens, experts, capacity, seed, top_k=3, extra=0, **options) -> None:
    """It decides as select does on what the device's own gate says."""
    columns = top_k + extra
    gate = cr.Gate(tokens, experts, columns, top_k, 1, 1, expand=2 if extra else 0, scaling=1.0)
    logits = router_logits(tokens, experts, "levels")
    ids, weights, scores, _ = cr.gated(logits, gate)
    asked = cs.Asked(ids, weights, scores, experts, capacity, top_k, **options)
    got, _ = cr.routed(logits, gate, asked, seed=seed)
    asked.assert_selected(got)


def everyone_stays(seed):
    mask = torch.arange(90) % 3 != 1
    options = {"token_mask": mask, "kept_weight_sum": 2.5, "row_alignment": 8}
    check_route(90, 8, cm.Capacity(), seed, extra=1, **options)


def everyone_stays_packed(seed):
    check_route(37, 60, cm.Capacity(), seed, top_k=4)


def capacity_binds(seed):
    check_route(90, 8, cm.Capacity(factor=0.5), seed)


def capacity_binds_many(seed):
    """Warps list up to 200 keys, side by side."""
    check_route(200, 7, cm.Capacity(limit=100), seed)


def second_choices(seed):
    mask = torch.arange(70) % 3 != 1
    capacity = cm.Capacity(factor=0.7, max_experts_per_token=2)
    check_route(70, 8, capacity, seed, extra=2, token_mask=mask, rounds=3)
