"""Random nests of branches and loops, whose lanes an interpreter in Python runs one by one."""

from __future__ import annotations

import random

import pytest

from cuda_on_cpu.ptx_snippets import random_bits, run

TOP = 1 << 32
REGISTERS = 4
OPERATIONS = {
    "add.u32": lambda x, y: x + y,
    "sub.u32": lambda x, y: x - y,
    "mul.lo.u32": lambda x, y: x * y,
    "xor.b32": lambda x, y: x ^ y,
    "and.b32": lambda x, y: x & y,
    "or.b32": lambda x, y: x | y,
    "max.u32": max,
    "min.u32": min,
}
TESTS = {
    "lt": lambda x, y: x < y,
    "ge": lambda x, y: x >= y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
}


class Break(Exception):  # noqa: N818
    pass


class Program:
    """Grows PTX and a tree for the interpreter side by side."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.labels = self.predicates = self.counters = 0
        self.tree, lines = [], []
        for _ in range(6):
            tree, ptx = self.statement(0, False)
            self.tree.append(tree)
            lines += ptx
            if self.random.random() < 0.6:
                tree, ptx = self.shuffle()
                self.tree.append(tree)
                lines += ptx
        registers = [f".reg .b32 r<{REGISTERS}>;", f".reg .b32 n<{self.counters + 1}>;"]
        registers += [f".reg .pred q<{self.predicates + 1}>;"]
        start = ["mov.b32 r0, a;", "mov.b32 r1, b;", "mov.b32 r2, tid;", "xor.b32 r3, a, b;"]
        end = ["xor.b32 d, r0, r1;", "add.u32 e, r2, r3;"]
        self.ptx = "\n".join([*registers, *start, *lines, *end])

    def label(self):
        self.labels += 1
        return f"L{self.labels}"

    def register(self):
        return self.random.randrange(REGISTERS)

    def condition(self):
        """A test of a few bits, so that lanes differ."""
        self.predicates += 1
        name, x, bits = (
            self.random.choice(list(TESTS)),
            self.register(),
            self.random.choice([1, 3, 7]),
        )
        value = self.random.randrange(bits + 1)
        p = f"q{self.predicates}"
        return (
            (name, x, bits, value),
            p,
            [
                f"and.b32 t0, r{x}, {bits};",
                f"setp.{name}.u32 {p}, t0, {value};",
            ],
        )

    def block(self, depth, loop):
        parts = [self.statement(depth, loop) for _ in range(self.random.randint(1, 3))]
        return [tree for tree, _ in parts], [line for _, ptx in parts for line in ptx]

    def shuffle(self):
        """At the top level, where all lanes meet again."""
        to, of, mask = self.register(), self.register(), self.random.choice([1, 2, 5, 16, 31])
        return ("shuffle", to, of, mask), [f"shfl.sync.bfly.b32 r{to}, r{of}, {mask}, 31, -1;"]

    def statement(self, depth, loop):
        kind = self.random.random()
        if depth > 3 or kind < 0.35:
            name, (d, x, y) = self.random.choice(list(OPERATIONS)), [self.register() for _ in "dxy"]
            return ("set", name, d, x, y), [f"{name} r{d}, r{x}, r{y};"]
        if kind < 0.42 and loop:
            condition, p, test = self.condition()
            return ("break", condition), [*test, f"@{p} bra {loop};"]
        if kind < 0.5:
            condition, p, test = self.condition()
            d, value = self.register(), self.random.randrange(100)
            return (
                ("if", condition, [("immediate", d, value)], []),
                [*test, f"@{p} add.u32 r{d}, r{d}, {value};"],
            )
        if kind < 0.8:
            condition, p, test = self.condition()
            (then, then_ptx), (other, other_ptx) = (
                self.block(depth + 1, loop),
                self.block(depth + 1, loop),
            )
            otherwise, end = self.label(), self.label()
            return ("if", condition, then, other), [
                *test, f"@!{p} bra {otherwise};", *then_ptx, f"bra {end};",
                f"{otherwise}:", *other_ptx, f"{end}:",
            ]  # fmt: skip
        self.counters += 1
        count, x, begin, end = f"n{self.counters}", self.register(), self.label(), self.label()
        body, ptx = self.block(depth + 1, end)
        self.predicates += 1
        p = f"q{self.predicates}"
        return ("loop", x, body), [
            f"and.b32 {count}, r{x}, 3;", f"{begin}:", f"setp.eq.u32 {p}, {count}, 0;",
            f"@{p} bra {end};", f"sub.u32 {count}, {count}, 1;", *ptx, f"bra {begin};", f"{end}:",
        ]  # fmt: skip


def holds(condition, r):
    name, x, bits, value = condition
    return TESTS[name](r[x] & bits, value)


def interpret(tree, r):
    for kind, *rest in tree:
        if kind == "set":
            name, d, x, y = rest
            r[d] = OPERATIONS[name](r[x], r[y]) % TOP
        elif kind == "immediate":
            r[rest[0]] = (r[rest[0]] + rest[1]) % TOP
        elif kind == "break":
            if holds(rest[0], r):
                raise Break
        elif kind == "if":
            interpret(rest[1] if holds(rest[0], r) else rest[2], r)
        else:
            try:
                for _ in range(r[rest[0]] & 3):
                    interpret(rest[1], r)
            except Break:
                pass


@pytest.mark.parametrize("seed", range(60))
def test_random_program(seed):
    program = Program(seed)
    a, b = random_bits(32, 32, seed=seed), random_bits(32, 32, seed=seed + 1, extremes=False)
    lanes = [[x, y, i, x ^ y] for i, (x, y) in enumerate(zip(a, b, strict=True))]
    for tree in program.tree:
        if tree[0] == "shuffle":
            _, to, of, mask = tree
            sent = [r[of] for r in lanes]
            for i, r in enumerate(lanes):
                r[to] = sent[i ^ mask]
        else:
            for r in lanes:
                interpret([tree], r)
    d, e = run(program.ptx, ("u32", "u32"), ("u32", a), ("u32", b), seed=seed % 3)
    assert d == [r[0] ^ r[1] for r in lanes], program.ptx
    assert e == [(r[2] + r[3]) % TOP for r in lanes], program.ptx
