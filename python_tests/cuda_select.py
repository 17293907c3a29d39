"""Launches of the CUDA backend's mark and select kernels on the CPU."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, field

import torch

import capmoe_kernels as cm
from capmoe_kernels import reference
from capmoe_kernels.bounds import select_rows
from checks import same_bits
from cuda_on_cpu import Const, emulate
from cuda_sources import compiled, folder, per_sources

COUNTERS = 4
CARD = 40  # words
POLICIES = ("score", "keep_first", "keep_last", "random")
OUTPUTS = (
    "expert_ids",
    "weights",
    "rows",
    "row_tokens",
    "expert_offsets",
    "tokens_per_expert",
    "demand_per_expert",
)

# The emulator knows tensors only as arguments of their own, so pointers are passed one by one.
OUT = """int32_t* expert_ids, float* out_weights, int32_t* rows, int32_t* row_tokens,
    int32_t* offsets, int32_t* counts, int32_t* demand"""
SELECTION = "expert_ids, out_weights, rows, row_tokens, offsets, counts, demand"
SELECT = """
extern "C" __global__ void __launch_bounds__({threads}) select_{id}_{warps}_{simple}(
    const {id}* ids, const float* weights, const float* scores, const bool* mask,
    const int64_t* priority, const __grid_constant__ capmoe::Select config, uint32_t* asks,
    uint32_t* top, uint32_t* keys, uint32_t* cards, uint32_t* counters, int repeats,
    SlotWord* slots, uint32_t* mask_words, int number, {out}) {{
  extern __shared__ uint4 shared[];
  const {problem} problem{{select_problem(
      ids, weights, scores, mask, priority, config,
      {{asks, top, keys, cards, counters, repeats != 0}}, slots, mask_words, {{{selection}}})}};
  {body};
}}
"""
# By the warps of a block; 0: blocks that need no barrier.
BODIES = {
    0: "select_apart(problem, number, shared)",
    8: "select_in_shared_memory<8>(problem, number, shared)",
    16: "select_in_shared_memory<16>(problem, number, shared)",
}


def with_headers(headers: tuple[str, ...], entries: str) -> str:
    """PTX of entries that use headers of csrc/cuda."""
    text = "".join(f'#include "{name}"\n' for name in headers)
    return compiled(text + "using namespace capmoe::cuda;\n" + entries)


@per_sources
def select_kernel(id_type: str, warps: int, simple: bool):
    place = {"id": id_type, "warps": warps, "threads": 32 * (warps or 16), "body": BODIES[warps]}
    place |= {
        "simple": int(simple),
        "problem": f"SimpleProblem<{id_type}>" if simple else f"SelectProblem<{id_type}>",
    }
    entry = SELECT.format(**place, out=OUT, selection=SELECTION)
    ptx = with_headers(("select_apart.cuh", "select_kernel.cuh"), entry)
    return emulate(ptx, f"select_{id_type}_{warps}_{int(simple)}")


@per_sources
def mark_kernel(id_type: str):
    ptx = compiled(folder() / "mark.cu")
    mangled = {"int32_t": "IiE", "int64_t": "IlE"}[id_type]
    return emulate(ptx, re.search(rf"\.entry (\w+mark_kernel{mangled}\w+)", ptx)[1])


def apart_shape(words: int, columns: int, num_experts: int) -> tuple[int, int]:
    """What the host chooses for blocks that need no barrier: threads, and words of a block."""
    warps = min(16, max(-(-32 * words * columns // 128), -(-num_experts * words // 512)))
    own = 4 * 32 * warps // (32 * columns)
    own_words = 4 if own < 8 else 8 if own < 16 else 16
    while own_words > 4 and num_experts * own_words > 4096:
        own_words //= 2
    return min(32 * warps, -(-own_words * 8 * max(columns, 4) // 32) * 32), own_words


class Bound(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("numerator", "denominator", "limit")),
        ("ceil", ctypes.c_bool),
    )


class Select(ctypes.Structure):
    """struct Select of options.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "columns", "num_experts", "top_k")),
        ("bound", Bound),
        *((name, ctypes.c_int64) for name in ("unit", "max_per_token", "reroute_rounds")),
        *((name, ctypes.c_int64) for name in ("row_alignment", "padded_rows", "rows")),
        ("policy", ctypes.c_int),
        ("topk_first", ctypes.c_bool),
        ("seed", ctypes.c_uint64),
        ("kept_weight_sum", ctypes.c_float),
    )


@dataclass
class Asked:
    """One call of capmoe::select; ``rounds`` and ``topk_first`` as the op has them."""

    ids: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor
    num_experts: int
    capacity: cm.Capacity = field(default_factory=cm.Capacity)
    top_k: int | None = None
    token_mask: torch.Tensor | None = None
    token_priority: torch.Tensor | None = None
    kept_weight_sum: float | None = None
    layout: str = "packed"
    row_alignment: int = 1
    rounds: int = 1
    topk_first: bool = False
    reports: list = field(default_factory=list)

    def __post_init__(self):
        self.top_k = self.ids.shape[1] if self.top_k is None else self.top_k

    @property
    def num_rows(self) -> int:
        c, (tokens, columns) = self.capacity, self.ids.shape
        per_token = self.top_k if self.rounds > 1 else columns
        most = min(per_token, c.max_experts_per_token or per_token)
        bound = (c.ratio, c.limit, c.rounding, c.experts_per_device or 1)
        rest = (*bound, self.layout, self.row_alignment)
        return select_rows(tokens, self.num_experts, self.top_k, most, *rest)

    def expected(self) -> dict:
        c = self.capacity
        out = reference.select(
            *(self.ids, self.weights, self.scores, self.token_mask, self.token_priority),
            *(self.num_experts, self.top_k, c.ratio, c.limit, c.rounding, c.policy),
            *("topk_first" if self.topk_first else "score", c.max_experts_per_token, self.rounds),
            *(c.experts_per_device or 1, c.seed, self.kept_weight_sum),
            *(self.layout, self.row_alignment, self.num_rows),
        )
        return dict(zip(OUTPUTS, out, strict=True))

    def config(self) -> Select:
        c, (tokens, columns) = self.capacity, self.ids.shape
        limit = -1 if c.limit is None else c.limit
        bound = Bound(*(c.ratio or (0, 0)), limit, c.rounding == "ceil")
        padded = self.num_rows // self.num_experts if self.layout == "padded" else -1
        total = -1.0 if self.kept_weight_sum is None else self.kept_weight_sum
        return Select(
            *(tokens, columns, self.num_experts, self.top_k, bound, c.experts_per_device or 1),
            *(c.max_experts_per_token or columns, self.rounds, self.row_alignment, padded),
            *(self.num_rows, POLICIES.index(c.policy), self.topk_first, c.seed, total),
        )

    def poisoned_outputs(self) -> dict:
        pairs, experts = self.ids.shape, self.num_experts
        shapes = (pairs, pairs, pairs, (self.num_rows,), (experts + 1,), (experts,), (experts,))
        out = {name: poisoned(*shape) for name, shape in zip(OUTPUTS, shapes, strict=True)}
        return out | {"weights": torch.full(pairs, float("nan"))}

    @property
    def simple(self) -> bool:
        """Whether the host takes the kernel for a SimpleProblem."""
        c, plain = self.capacity, self.token_mask is None and self.token_priority is None
        more = self.rounds > 1 or c.max_experts_per_token or self.topk_first
        return plain and not more and (c.experts_per_device or 1) == 1

    def _mark(self, id_type: str, marks: tuple, seed: int) -> None:
        tokens, columns = self.ids.shape
        words, all_words = 8, -(-tokens // 32)
        per_word = 4 * self.num_experts * (1 if marks[1] is None else 2)
        while words > 1 and (words * per_word > 48 * 1024 or words // 2 >= all_words):
            words //= 2
        pairs = min(tokens, 32 * words) * columns
        warps = min(8, max(1, -(-max(pairs, self.num_experts * words // 4) // 32)))
        launch = mark_kernel(id_type)[-(-all_words // words), 32 * warps, words * per_word]
        inputs = (Const(self.ids), Const(self.scores), bytes(self.config()))
        self.reports.append(launch(*inputs, *marks, words, seed=seed))

    def run(
        self, warps=8, blocks=3, seed=0, repeats=True, listed=None, simple=None, cards=False
    ) -> dict:
        """The outputs of mark and select; memory is poisoned first. ``cards``: as of a gate."""
        simple = self.simple if simple is None else simple
        listed = listed or {0: 0, 8: 512, 16: 1024}[warps]
        tokens, columns = self.ids.shape
        words = -(-tokens // 32) * self.num_experts
        sizes = (words, words, self.num_experts * tokens, COUNTERS)
        asks, top, keys, counters = (poisoned(size) for size in sizes)
        top = None if self.top_k == columns else top
        keys = keys if self.capacity.policy == "score" else None
        id_type = {torch.int32: "int32_t", torch.int64: "int64_t"}[self.ids.dtype]
        if tokens > 0:
            self._mark(id_type, (asks, top, keys, counters), seed)
        out = self.poisoned_outputs()
        threads, number = 32 * warps, listed
        shared = 16 * ((self.num_experts + 4) // 4) + 4 * warps * (256 + listed)
        if warps == 0:
            threads, number = apart_shape(-(-tokens // 32), columns, self.num_experts)
            blocks = -(-tokens // (32 * number))
            shared = 4 * (self.num_experts + 1) + (8 + 8 * number) * self.num_experts
            assert shared <= 48 * 1024  # more must be asked for
        grid = (blocks if tokens else 1, threads, shared)
        given = None
        if cards:
            given = cards_of(asks.view(self.num_experts, -1), keys.view(self.num_experts, -1))
            asks = keys = None
        launch = select_kernel(id_type, warps, simple and warps > 0)[grid]
        report = launch(
            *(Const(self.ids), Const(self.weights), Const(self.scores)),
            *(constant(self.token_mask), constant(self.token_priority), bytes(self.config())),
            *(asks, constant(top), constant(keys), constant(given), counters, int(repeats)),
            *(poisoned(2 * words), poisoned(-(-tokens // 32)), number, *out.values()),
            seed=seed,
            resident=blocks,
        )
        self.reports.append(report)
        assert [report.warnings for report in self.reports] == [[]] * len(self.reports)
        return out

    def assert_selected(self, got: dict) -> None:
        """Integers and plain weights bit for bit; rescaled weights within the last bit."""
        expected = self.expected()
        for name in OUTPUTS:
            if name == "weights" and self.kept_weight_sum is not None:
                torch.testing.assert_close(got[name], expected[name], rtol=1.2e-7, atol=0)
            else:
                assert same_bits(got[name], expected[name]), name


def unsigned(x: torch.Tensor) -> torch.Tensor:
    return x.long() & 0xFFFFFFFF


def cards_of(asks: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """[E, W, CARD]: the asks, then the keys of those who ask, then poison."""
    (experts, tokens), words = keys.shape, asks.shape[1]
    padded = poisoned(experts, 32 * words)
    padded[:, :tokens] = keys
    asked = ((unsigned(asks)[..., None] >> torch.arange(32)) & 1).bool()
    order = (~asked).int().sort(dim=2, stable=True).indices
    cards = poisoned(experts, words, CARD)
    cards[..., 0] = asks
    sorted_keys = padded.view(experts, words, 32).gather(2, order)
    cards[..., 1:33] = sorted_keys.where(asked.gather(2, order), cards[..., 1:33])
    return cards


def poisoned(*shape) -> torch.Tensor:
    return torch.full(shape, -0x5A5A5A5A, dtype=torch.int32)


def constant(tensor):
    return None if tensor is None else Const(tensor)
