"""One wgmma over a tile laid out in shared memory: PTX, descriptors and fragments, from the manual.

Needs NumPy only, so that the same cases can be run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MODES = {0: 0, 128: 1, 64: 2, 32: 3}  # bytes of the swizzle, and its number in a descriptor
BYTES = {"f16": 2, "bf16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1, "s8": 1, "u8": 1}


@dataclass(frozen=True)
class Tile:
    """Where an operand lies. ``inner``: which 32 bytes of a swizzled row of K it begins at.

    ``lines`` is M or N. Strides of 0 mean the densest ones. ``base_offset``: the row of the
    swizzle's pattern, of 128 bytes, that an address divisible by 1024 is in.
    """

    lines: int
    size: int  # bytes of an element
    swizzle: int = 0
    mn_major: bool = False
    inner: int = 0
    leading: int = 0
    stride: int = 0
    start: int = 0
    base_offset: int = 0

    @property
    def depth(self) -> int:
        return 32 // self.size

    def strides(self) -> tuple[int, int]:
        """Leading and stride byte offset."""
        if self.mn_major:
            repeat = 8 * (self.swizzle or 16)  # bytes of eight lines of K
            columns = self.lines * 2 // (self.swizzle or 16)
            dense = (repeat * columns, repeat) if not self.swizzle else (2 * repeat, repeat)
        else:
            dense = (self.lines * 16, 128) if not self.swizzle else (16, 8 * self.swizzle)
        return self.leading or dense[0], self.stride or dense[1]

    def place(self, mn: int, k: int) -> int:
        """The byte where an element begins, by the manual's canonical layouts."""
        leading, stride = self.strides()
        span = self.swizzle or 16
        along, across = (mn, k) if self.mn_major else (k, mn)
        chunk, within = divmod(along * self.size, 16)
        at = across % 8 * span + within
        if not self.swizzle:
            # No swizzle: 8 x 16-byte core matrices, one after another along M or N and along K.
            mn_step, k_step = (chunk, across // 8) if self.mn_major else (across // 8, chunk)
            at += mn_step * stride + k_step * leading
        elif self.mn_major:
            at += chunk * 16 % span + chunk * 16 // span * leading + across // 8 * stride
        else:
            at += self.inner * 32 + chunk * 16 + across // 8 * stride
        at += self.start
        if self.swizzle:
            at ^= ((at // 128 - self.base_offset) % (span // 16)) * 16
        return at

    def fill(self, memory: np.ndarray, matrix: np.ndarray) -> None:
        """``matrix``: [lines, depth] of raw bits."""
        for mn in range(self.lines):
            for k in range(self.depth):
                at = self.place(mn, k)
                memory[at : at + self.size] = np.frombuffer(matrix[mn, k].tobytes(), np.uint8)

    def extent(self) -> int:
        places = [self.place(mn, k) for mn in range(self.lines) for k in range(self.depth)]
        return max(places) + self.size

    def descriptor(self) -> int:
        """Without the address of shared memory itself, which the kernel adds."""
        leading, stride = self.strides()
        start = self.start + self.inner * 32
        mode = MODES[self.swizzle] << 62
        return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | self.base_offset << 49 | mode


def accumulator_place(thread: int, i: int) -> tuple[int, int]:
    """Row and column of a thread's i-th value of D; two halves lie in one register."""
    warp, lane = divmod(thread, 32)
    return 16 * warp + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + lane % 4 * 2 + i % 2


def fragment_place(thread: int, i: int, per: int) -> tuple[int, int]:
    """Row and k of a thread's i-th element of A, where ``per`` elements lie in a register."""
    warp, lane = divmod(thread, 32)
    register, element = divmod(i, per)
    row = 16 * warp + lane // 4 + 8 * (register % 2)
    return row, 4 * per * (register // 2) + lane % 4 * per + element


def places(place, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of every thread's values, [128, count] each."""
    rows, columns = np.array([[place(t, i) for i in range(count)] for t in range(128)]).T
    return rows.T, columns.T


def accumulators(matrix: np.ndarray) -> np.ndarray:
    """[128, N / 2] of a matrix of 64 x N, as the threads hold it."""
    return np.ascontiguousarray(matrix[places(accumulator_place, matrix.shape[1] // 2)])


def product_matrix(values: np.ndarray) -> np.ndarray:
    """The matrix of what the threads hold."""
    out = np.zeros((64, 2 * values.shape[1]), values.dtype)
    out[places(accumulator_place, values.shape[1])] = values
    return out


def fragments(matrix: np.ndarray) -> np.ndarray:
    """[128, 16 bytes] of A as the threads hold it."""
    per = 4 // matrix.dtype.itemsize
    where = places(lambda t, i: fragment_place(t, i, per), 4 * per)
    return np.ascontiguousarray(matrix[where]).view(np.uint8)


@dataclass
class Case:
    """D = A B + C of raw bits: ``left`` [64, K], ``right`` [N, K], ``before`` [64, N]."""

    types: tuple[str, str, str]  # of D, A, B
    a: Tile | None  # None: from registers
    b: Tile
    left: np.ndarray
    right: np.ndarray
    before: np.ndarray
    scale: str = "1"
    negate: tuple[int, int] = (1, 1)
    option: str = ""

    def ptx(self) -> str:
        return kernel(
            self.b.lines, self.types, self.a, self.b,
            scale=self.scale, negate=self.negate, option=self.option,
        )  # fmt: skip

    def arguments(self) -> list[np.ndarray]:
        """Image of shared memory, fragments of A, accumulators before, and room for D."""
        size = max(self.b.extent(), self.a.extent() if self.a else 0)
        memory = np.zeros(-(-size // 2048) * 2048, np.uint8)
        if self.a:
            self.a.fill(memory, self.left)
        self.b.fill(memory, self.right)
        before = accumulators(self.before)
        return [memory, fragments(self.left), before, np.zeros_like(before)]


def kernel(n, types, a, b, *, scale="1", negate=(1, 1), option="", kernel_name="k") -> str:
    """PTX of D = A B + C. ``types``: D, A, B; ``a``: a Tile, or None for registers."""
    d, left, right = types
    registers = n // (4 if d == "f16" else 2)
    k = 32 // BYTES[left]
    names = ", ".join(f"d{i}" for i in range(registers))
    operand = "{a0, a1, a2, a3}" if a is None else "da"
    flags = [] if left in ("s8", "u8") else [str(x) for x in negate]
    if k == 16:
        flags += ([] if a is None else [str(int(a.mn_major))]) + [str(int(b.mn_major))]
    wgmma = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}{option}.{d}.{left}.{right}"
    load = "\n".join(f"ld.global.b32 d{i}, [c+{4 * i}];" for i in range(registers))
    save = "\n".join(f"st.global.b32 [x+{4 * i}], d{i};" for i in range(registers))
    return f"""
.version 8.4
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 memory[];
.visible .entry {kernel_name}(.param .u64 pm, .param .u64 pa, .param .u64 pc, .param .u64 pd,
    .param .u32 bytes)
{{
    .reg .pred p, q; .reg .b32 tid, at, n, base, t<4>, a<4>, d<{registers}>;
    .reg .b64 m, fa, c, x, from, da, db, start;
    ld.param.u64 m, [pm]; ld.param.u64 fa, [pa]; ld.param.u64 c, [pc]; ld.param.u64 x, [pd];
    ld.param.u32 n, [bytes];
    mov.u32 tid, %tid.x;
    mov.u32 base, memory;
    shl.b32 at, tid, 4;
COPY:
    cvt.u64.u32 from, at;
    add.s64 from, from, m;
    ld.global.v4.b32 {{t0, t1, t2, t3}}, [from];
    {{ .reg .b32 to; add.s32 to, base, at; st.shared.v4.b32 [to], {{t0, t1, t2, t3}}; }}
    add.s32 at, at, 2048;
    setp.lt.u32 p, at, n;
    @p bra COPY;
    fence.proxy.async;
    bar.sync 0;
    mad.wide.u32 fa, tid, 16, fa;
    ld.global.v4.b32 {{a0, a1, a2, a3}}, [fa];
    mad.wide.u32 c, tid, {4 * registers}, c;
    mad.wide.u32 x, tid, {4 * registers}, x;
    {load}
    cvt.u64.u32 start, base;
    shr.u64 start, start, 4;
    add.s64 da, start, {0 if a is None else a.descriptor()};
    add.s64 db, start, {b.descriptor()};
    setp.ne.u32 q, {scale}, 0;
    wgmma.fence.sync.aligned;
    {wgmma} {{{names}}}, {operand}, db, {", ".join(["q", *flags])};
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    {save}
    ret;
}}
"""
