"""Small PTX kernels around a few instructions, so that a test states instructions and operands.

``run`` gives every lane one value of each input in the registers ``a``, ``b``, ``c`` and stores
what the instructions leave in ``d`` (and ``e``). ``module`` is the plain frame for other kernels.
Both declare scratch registers: predicates ``p0-p3``, 16-bit ``h0-h3``, 32-bit ``t0-t7``, 64-bit
``x0-x7``, floats ``f0-f3``; ``tid`` holds the thread's index.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from cuda_on_cpu import emulate


class Type(NamedTuple):
    register: str
    access: str
    dtype: torch.dtype
    integers: str | None = None  # numpy's view of the stored bits; None for floats
    count: int = 1


TYPES = {
    **{f"{k}8": Type("b16", f"{k}8", torch.uint8, v) for k, v in {"u": "u1", "s": "i1"}.items()},
    **{
        f"{k}{8 * n}": Type(f"b{8 * n}", f"{k}{8 * n}", dtype, f"{'i' if k == 's' else 'u'}{n}")
        for n, dtype in {2: torch.int16, 4: torch.int32, 8: torch.int64}.items()
        for k in "usb"
    },
    "f32": Type("f32", "f32", torch.float32),
    "f64": Type("f64", "f64", torch.float64),
    "f16": Type("b16", "b16", torch.float16),
    "bf16": Type("b16", "b16", torch.bfloat16),
    "f16x2": Type("b32", "b32", torch.float16, count=2),
    "bf16x2": Type("b32", "b32", torch.bfloat16, count=2),
    "pred": Type("pred", "u32", torch.int32, "u4"),
}

SCRATCH = """
    .reg .pred p<4>;
    .reg .b16 h<4>;
    .reg .b32 t<8>;
    .reg .b64 x<8>;
    .reg .f32 f<4>;
    .reg .b32 tid;
    mov.u32 tid, %tid.x;"""


def module(body, pointers=1, *, outside="", params="", target="sm_80"):
    """An entry ``k`` with its pointers in ``g0, g1, ..``; ``params`` declares other parameters."""
    declared = [f".param .u64 ptr{i}" for i in range(pointers)] + ([params] if params else [])
    loads = "\n".join(
        f"    ld.param.u64 g{i}, [ptr{i}];\n    cvta.to.global.u64 g{i}, g{i};"
        for i in range(pointers)
    )
    return f"""
.version 8.7
.target {target}
.address_size 64
{outside}
.visible .entry k({", ".join(declared)})
{{
    .reg .b64 g<{pointers + 1}>;{SCRATCH}
{loads}
{body}
    ret;
}}
"""


def launch(
    body, *tensors, block=32, grid=1, shared=0, seed=0, outside="", target="sm_80", **options
):
    """Runs ``module(body)`` over the tensors, in place, and returns the report."""
    kernel = emulate(module(body, len(tensors), outside=outside, target=target))
    return kernel[grid, block, shared](*tensors, seed=seed, **options)


def zeros(n=32, dtype=torch.int32):
    return torch.zeros(n, dtype=dtype)


def at(pointer, size, register="x0"):
    """The address of the thread's element."""
    return f"mad.wide.u32 {register}, tid, {size}, {pointer};\n"


def to_tensor(kind, values):
    """Integers may be Python's, of either sign: they are wrapped to the type's width."""
    if isinstance(values, torch.Tensor):
        return values.clone()
    t = TYPES[kind]
    if t.integers is None:
        return torch.tensor(values, dtype=t.dtype)
    size = int(t.integers[1])
    bits = np.array([int(v) & (1 << 8 * size) - 1 for v in values], dtype=f"u{size}")
    return torch.from_numpy(bits.view(f"i{size}" if size > 1 else "u1").copy())


def from_tensor(kind, tensor):
    """Integer results as Python's integers, floats as a tensor."""
    integers = TYPES[kind].integers
    return tensor if integers is None else tensor.numpy().view(integers).tolist()


def run(code, out, *inputs, target="sm_80", outside="", seed=0, on_gpu=True):
    """``out``: the PTX type of ``d``, or a pair for ``d`` and ``e``. ``inputs``: (type, values)."""
    outs = (out,) if isinstance(out, str) else out
    n = len(inputs[0][1])
    lines = []
    for name, i, (kind, _) in zip("abc", range(3), inputs, strict=False):
        t = TYPES[kind]
        size = t.dtype.itemsize * t.count
        lines += [
            f"    .reg .{t.register} {name};",
            f"    mad.wide.u32 g{i}, tid, {size}, g{i};",
            f"    ld.global.{t.access} {name}, [g{i}];",
        ]
    lines += [
        f"    .reg .{TYPES[kind].register} {name};" for name, kind in zip("de", outs, strict=False)
    ]
    lines.append(code)
    for i, (name, kind) in enumerate(zip("de", outs, strict=False), start=len(inputs)):
        t = TYPES[kind]
        if kind == "pred":
            lines.append(f"    selp.u32 t7, 1, 0, {name};")
            name = "t7"
        lines += [
            f"    mad.wide.u32 g{i}, tid, {t.dtype.itemsize * t.count}, g{i};",
            f"    st.global.{t.access} [g{i}], {name};",
        ]
    results = [
        torch.full((n, TYPES[k].count) if TYPES[k].count > 1 else (n,), 85).to(TYPES[k].dtype)
        for k in outs
    ]
    tensors = [to_tensor(*pair) for pair in inputs]
    frame = {"block": n, "seed": seed, "target": target, "outside": outside, "on_gpu": on_gpu}
    launch("\n".join(lines), *tensors, *results, **frame)
    values = [from_tensor(kind, r) for kind, r in zip(outs, results, strict=True)]
    return values[0] if isinstance(out, str) else values


def random_bits(bits, n=32, seed=0, extremes=True):
    """Random unsigned integers of all magnitudes, the corners first."""
    g = torch.Generator().manual_seed(seed)
    top = 1 << bits
    corners = [0, 1, top - 1, top // 2, top // 2 - 1, top // 2 + 1, 0x55, 7] if extremes else []
    words = torch.randint(0, 1 << 16, (n, 4), generator=g).tolist()
    shifts = torch.randint(0, bits, (n,), generator=g).tolist()
    full = [sum(w << 16 * i for i, w in enumerate(row)) % top for row in words]
    varied = [v >> s if i % 2 else v for i, (v, s) in enumerate(zip(full, shifts, strict=True))]
    return (corners + varied)[:n]


def signed(value, bits):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


def unsigned(value, bits):
    return value & (1 << bits) - 1
