"""mark and select of the CUDA backend, as nvcc compiles them for sm_80, executed on the CPU against the reference."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import capmoe_kernels as cm
from capmoe_kernels import reference
from capmoe_kernels.bounds import select_rows
from checks import same_bits
from cuda_on_cpu import Const, compile_cuda, emulate

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

SOURCES = Path(__file__).parent.parent / "csrc" / "cuda"
COUNTERS = 4
THREADS = {1: 256, 4: 128}  # of a block, by the warps that decide a budget together
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
ENTRY = """
extern "C" __global__ void __launch_bounds__({threads}) {name}(
    const {id}* ids, const float* weights, const float* scores, const bool* mask,
    const int64_t* priority, const __grid_constant__ capmoe::Select config, uint32_t* asks,
    uint32_t* top, uint32_t* keys, uint32_t* counters, int repeats, capmoe::cuda::SlotWord* slots,
    uint32_t* mask_words, int32_t* expert_ids, float* out_weights, int32_t* rows,
    int32_t* row_tokens, int32_t* offsets, int32_t* counts, int32_t* demand) {{
  extern __shared__ int shared[];
  using namespace capmoe::cuda;
  const auto problem = select_problem(
      ids, weights, scores, mask, priority, config, {{asks, top, keys, counters, repeats != 0}},
      slots, mask_words, {{expert_ids, out_weights, rows, row_tokens, offsets, counts, demand}});
  select_in_static_memory<{warps}>(problem, shared);
}}
"""


@functools.cache
def kernels() -> dict:
    """Every kernel here by name; recompiled when any source of the folder has changed."""
    files = [SOURCES.parent / "options.h", *sorted(SOURCES.glob("*.h")), *sorted(SOURCES.glob("*.cuh"))]
    files.append(SOURCES / "mark.cu")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    text = f'// {digest}\n#include "mark.cu"\n#include "select_kernel.cuh"\n'
    for id_type in ("int32_t", "int64_t"):
        for warps, threads in THREADS.items():
            text += ENTRY.format(name=f"select_{id_type}_{warps}", id=id_type, warps=warps, threads=threads)
    ptx = compile_cuda(text, flags=(f"-I{SOURCES}",))
    ptx = re.sub(
        r"cvt\.s64\.s32\s+(%rd\d+), (%rd\d+);", r"shl.b64 \1, \2, 32;\nshr.s64 \1, \1, 32;", ptx
    )
    return ptx


@functools.cache
def kernel(name: str):
    return emulate(kernels(), name)


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
        *(
            (name, ctypes.c_int64)
            for name in (
                "unit",
                "max_per_token",
                "reroute_rounds",
                "row_alignment",
                "padded_rows",
                "rows",
            )
        ),
        ("policy", ctypes.c_int),
        ("topk_first", ctypes.c_bool),
        ("seed", ctypes.c_uint64),
        ("kept_weight_sum", ctypes.c_float),
    )


@dataclass
class Asked:
    """One call of capmoe::select."""

    ids: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor
    num_experts: int
    capacity: cm.Capacity = cm.Capacity()
    top_k: int | None = None
    token_mask: torch.Tensor | None = None
    token_priority: torch.Tensor | None = None
    kept_weight_sum: float | None = None
    layout: str = "packed"
    row_alignment: int = 1
    reports: list = field(default_factory=list)

    def arguments(self) -> tuple:
        c, columns = self.capacity, self.ids.shape[1]
        self.top_k = columns if self.top_k is None else self.top_k
        per_token = self.top_k if c.reroute_rounds > 1 else columns
        num_rows = select_rows(
            self.ids.shape[0],
            self.num_experts,
            self.top_k,
            min(per_token, c.max_experts_per_token or per_token),
            c.ratio,
            c.limit,
            c.rounding,
            c.experts_per_device or 1,
            self.layout,
            self.row_alignment,
        )
        return (
            *(self.ids, self.weights, self.scores, self.token_mask, self.token_priority),
            *(self.num_experts, self.top_k, c.ratio, c.limit, c.rounding, c.policy),
            *(c.expand_priority, c.max_experts_per_token, c.reroute_rounds),
            *(c.experts_per_device or 1, c.seed, self.kept_weight_sum),
            *(self.layout, self.row_alignment, num_rows),
        )

    def expected(self) -> dict:
        return dict(zip(OUTPUTS, reference.select(*self.arguments()), strict=True))

    def config(self) -> Select:
        num_rows = self.arguments()[-1]
        c, (tokens, columns) = self.capacity, self.ids.shape
        numerator, denominator = c.ratio or (0, 0)
        limit = -1 if c.limit is None else c.limit
        bound = Bound(numerator, denominator, limit, c.rounding == "ceil")
        padded = num_rows // self.num_experts if self.layout == "padded" else -1
        total = -1.0 if self.kept_weight_sum is None else self.kept_weight_sum
        return Select(
            *(tokens, columns, self.num_experts, self.top_k, bound, c.experts_per_device or 1),
            *(c.max_experts_per_token or columns, c.reroute_rounds, self.row_alignment, padded),
            *(num_rows, POLICIES.index(c.policy), c.expand_priority == "topk_first", c.seed, total),
        )

    def run(self, warps=1, blocks=3, seed=0, repeats=1) -> dict:
        """The outputs of mark and select; memory is poisoned first."""
        config, E = self.config(), self.num_experts
        T, K = self.ids.shape
        W = -(-T // 32)
        asks, top, keys, counters = (poisoned(n) for n in (E * W, E * W, E * T, COUNTERS))
        top = None if self.top_k == K else top
        keys = keys if self.capacity.policy == "score" else None
        id_type = {torch.int32: "int32_t", torch.int64: "int64_t"}[self.ids.dtype]
        ids, weights, scores = Const(self.ids), Const(self.weights), Const(self.scores)
        if T > 0:
            words = 8
            while words > 1 and words * 4 * E * (1 if top is None else 2) > 48 * 1024:
                words //= 2
            name = next(n for n in emulate_names() if "mark_kernel" in n and id_type_of(n) == id_type)
            report = kernel(name)[-(-W // words), 256, 4 * E * words * (1 if top is None else 2)](
                ids, scores, bytes(config), asks, top, keys, counters, words, seed=seed
            )
            self.reports.append(report)
        out = {
            "expert_ids": poisoned(T, K),
            "weights": torch.full((T, K), float("nan")),
            "rows": poisoned(T, K),
            "row_tokens": poisoned(config.rows),
            "expert_offsets": poisoned(E + 1),
            "tokens_per_expert": poisoned(E),
            "demand_per_expert": poisoned(E),
        }
        report = kernel(f"select_{id_type}_{warps}")[blocks if T else 1, THREADS[warps], 4 * (E + 1)](
            *(ids, weights, scores, constant(self.token_mask), constant(self.token_priority)),
            *(bytes(config), asks, constant(top), constant(keys), counters, repeats),
            *(poisoned(2 * E * W), poisoned(W), *out.values()),
            seed=seed,
            resident=blocks,
        )
        self.reports.append(report)
        assert [r.warnings for r in self.reports] == [[]] * len(self.reports)
        return out


def poisoned(*shape):
    return torch.full(shape, -0x5A5A5A5A, dtype=torch.int32)


def constant(tensor):
    return None if tensor is None else Const(tensor)


def emulate_names():
    from cuda_on_cpu.parse import parse

    return [f.name for f in parse(kernels()).functions.values() if f.is_entry]


def id_type_of(mangled: str) -> str:
    return "int32_t" if "IiE" in mangled else "int64_t"


def check(asked: Asked, **launch):
    got, expected = asked.run(**launch), asked.expected()
    for name in OUTPUTS:
        if name == "weights" and asked.kept_weight_sum is not None:
            torch.testing.assert_close(got[name], expected[name], rtol=1.2e-7, atol=0)
        else:
            assert same_bits(got[name], expected[name]), name


def random_ids(tokens, columns, num_experts, seed=0, dtype=torch.int32):
    """Distinct experts per token, popular ones first; some columns unused."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(tokens, num_experts, generator=g) + torch.linspace(2, 0, num_experts)
    return noise.argsort(dim=1, descending=True)[:, :columns].to(dtype).contiguous()


def floats(tokens, columns, seed=0, levels=None):
    g = torch.Generator().manual_seed(seed + 1)
    x = torch.rand(tokens, columns, generator=g)
    return x if levels is None else (x * levels).round() / levels


def asking(T, E, K, capacity=cm.Capacity(), seed=0, levels=None, dtype=torch.int32, **options):
    ids = random_ids(T, K, E, seed, dtype)
    return Asked(ids, floats(T, K, seed + 5), floats(T, K, seed, levels), E, capacity, **options)


SHAPES = [(0, 8, 2), (1, 8, 2), (2, 1, 1), (31, 8, 8), (32, 60, 4), (33, 8, 3), (257, 64, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("warps", [1, 4])
def test_dropless(shape, warps):
    for blocks in (1, 3):
        check(asking(*shape), warps=warps, blocks=blocks)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("warps", [1, 4])
def test_binding(policy, warps):
    for seed in range(4):
        for limit in (0, 1, 7, 33):
            capacity = cm.Capacity(limit=limit, policy=policy, seed=2**40 + 7)
            check(asking(130, 6, 3, capacity, seed, levels=3), warps=warps, seed=seed)
