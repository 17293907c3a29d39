"""printf and assert from device code, as nvcc compiles them."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import compile_cuda, emulate
from cuda_on_cpu.errors import OutOfBounds, Trap, Unsupported

PARAMETERS = "int n, float f, const char* text, long long* p"
FLOATS = "2.500000 2.50    2.500 2.500000e+00 2.5 INF"
ARGUMENTS = (-7, 2.5, torch.tensor(list(b"abc\0"), dtype=torch.uint8), None)


FORMATS = [
    ('"plain\\n"', "plain\n"),
    ('"%d|%5d|%-5d|%i\\n", n, n, n, n + 1', "-7|   -7|-7   |-6\n"),
    ('"%u %x %X %o", n, n, 255, 8', "4294967289 fffffff9 FF 10"),
    ('"%f %.2f %8.3f %e %g %G", f, f, f, f, f, f / 0', FLOATS),
    ('"%s and %6s.", text, "ab"', "abc and     ab."),
    ('"%lld %llu %lu %llx", (long long)n << 40, ~0ull, 1ul, 255ll << 32', None),
    ('"%c%c%%", 65, n + 73', "AB%"),
    ('"%p", p', "0x0"),
    ('"%d %f %d %lld %c", 1, 2.0, 3, 4ll, 53', "1 2.000000 3 4 5"),
]
BODIES = {
    **{f"format_{i}": f"printf({call});" for i, (call, _) in enumerate(FORMATS)},
    "threads": 'if (threadIdx.x % 2) printf("t%d", threadIdx.x); '
    'else printf("even %d", threadIdx.x);',
    "count": 'p[0] = printf("%d %d\\n", n, n); p[1] = printf("none");',
    "number": 'printf("%d", n);',
    "nothing": "",
    "before": 'printf("before"); p[5] = 1;',
    "string": 'printf("%s", text);',
    "unknown": 'printf("%n", p);',
    "check": "assert(n < 5 && text);",
    "check_thread": "assert(threadIdx.x != 9);",
    "trap": "__trap();",
    "breakpoint": "__brkpt();",
    "malloc_": "p[0] = (long long)malloc(8);",
    "free_": "free(p);",
}


@pytest.fixture(scope="module")
def kernel():
    """All in one file: each run of the compiler takes its time."""
    entries = "".join(
        f'extern "C" __global__ void {name}({PARAMETERS}) {{ {body} }}\n'
        for name, body in BODIES.items()
    )
    ptx = compile_cuda("#include <cassert>\n#include <cstdio>\n" + entries, "sm_80")
    return lambda name: emulate(ptx, name)


@pytest.mark.parametrize("i", range(len(FORMATS)))
def test_formats(i, kernel):
    want = FORMATS[i][1] or f"{-7 << 40} {2**64 - 1} 1 ff00000000"
    assert kernel(f"format_{i}")[1, 1](*ARGUMENTS).output == [want]


@pytest.mark.parametrize("seed", range(4))
def test_every_thread_prints_for_itself(seed, kernel):
    lines = kernel("threads")[1, 70](*ARGUMENTS, seed=seed).output
    want = [f"t{i}" if i % 2 else f"even {i}" for i in range(70)]
    assert sorted(lines) == sorted(want)


def test_the_count_of_arguments_comes_back(kernel):
    out = torch.zeros(2, dtype=torch.int64)
    kernel("count")[1, 1](*ARGUMENTS[:3], out)
    assert out.tolist() == [2, 0]


def test_output_is_of_one_launch(kernel):
    k = kernel("number")
    assert k[1, 1](*ARGUMENTS).output == ["-7"]
    assert k[1, 1](1, *ARGUMENTS[1:]).output == ["1"]
    assert kernel("nothing")[1, 1](*ARGUMENTS).output == []


def test_what_was_printed_before_an_error_is_kept(kernel):
    with pytest.raises(OutOfBounds) as caught:
        kernel("before")[1, 1](*ARGUMENTS[:3], torch.zeros(5, dtype=torch.int64))
    assert caught.value.output == ["before"]


def test_a_text_without_its_end(kernel):
    unended = torch.tensor(list(b"abc"), dtype=torch.uint8)
    with pytest.raises(OutOfBounds):
        kernel("string")[1, 1](-7, 2.5, unended, None)


def test_an_unknown_conversion(kernel):
    with pytest.raises(Unsupported, match="printf of %n"):
        kernel("unknown")[1, 1](*ARGUMENTS)


def test_assert(kernel):
    k = kernel("check")
    k[1, 32](4, *ARGUMENTS[1:])
    message = r"kernel.cu:\d+: .*check\(int.*: assertion `n < 5 && text' failed.*thread \(0, 0, 0\)"
    with pytest.raises(Trap, match=message):
        k[1, 32](5, *ARGUMENTS[1:])
    with pytest.raises(Trap, match=r"threadIdx.x != 9.*thread \(9, 0, 0\)"):
        kernel("check_thread")[1, 32](*ARGUMENTS)


@pytest.mark.parametrize("name", ["trap", "breakpoint"])
def test_trap_and_breakpoint(name, kernel):
    with pytest.raises(Trap):
        kernel(name)[1, 32](*ARGUMENTS)


@pytest.mark.parametrize("name", ["malloc_", "free_"])
def test_there_is_no_heap(name, kernel):
    with pytest.raises(Unsupported, match=r"call of (malloc|free)"):
        kernel(name)
