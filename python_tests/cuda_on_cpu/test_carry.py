"""Chains through the condition code's carry, against Python's unbounded integers."""

from __future__ import annotations

from cuda_on_cpu.ptx_snippets import random_bits, run, unsigned


def test_carry_chain_adds_and_subtracts_64_bits():
    a, b = random_bits(64, seed=3), random_bits(64, seed=4)[::-1]
    split = "mov.b64 {t0, t1}, a; mov.b64 {t2, t3}, b;"
    add = split + "add.cc.u32 t0, t0, t2; addc.u32 t1, t1, t3; mov.b64 d, {t0, t1};"
    sub = split + "sub.cc.u32 t0, t0, t2; subc.u32 t1, t1, t3; mov.b64 d, {t0, t1};"
    inputs = [("u64", a), ("u64", b)]
    assert run(add, "u64", *inputs) == [unsigned(x + y, 64) for x, y in zip(a, b, strict=True)]
    assert run(sub, "u64", *inputs) == [unsigned(x - y, 64) for x, y in zip(a, b, strict=True)]


def test_mad_with_carry_multiplies_64_bits():
    """The chain that compilers emit for the high half of a 64-bit product."""
    a, b = random_bits(64, seed=5), random_bits(64, seed=6)[::-1]
    code = """
        mov.b64 {t0, t1}, a; mov.b64 {t2, t3}, b;
        mul.hi.u32 t4, t0, t2;
        mad.lo.cc.u32 t4, t0, t3, t4; madc.hi.u32 t5, t0, t3, 0;
        mad.lo.cc.u32 t4, t1, t2, t4; madc.hi.cc.u32 t5, t1, t2, t5; addc.u32 t6, 0, 0;
        mad.lo.cc.u32 t5, t1, t3, t5; madc.hi.u32 t6, t1, t3, t6;
        mov.b64 d, {t5, t6};
    """
    want = [x * y >> 64 for x, y in zip(a, b, strict=True)]
    assert run(code, "u64", ("u64", a), ("u64", b)) == want
