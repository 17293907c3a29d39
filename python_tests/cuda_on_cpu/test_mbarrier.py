"""mbarrier: against a model in Python that follows the PTX manual; order of memory; misuse."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from cuda_on_cpu.async_snippets import run, start, wait
from cuda_on_cpu.errors import Hang, SharedRace
from cuda_on_cpu.ptx_snippets import at, zeros

SEEDS = range(4)


@dataclass
class Model:
    """The object of the manual: phase, pending and expected arrivals, tx-count."""

    expected: int
    phase: int = 0
    pending: int = 0
    tx: int = 0

    def __post_init__(self):
        self.pending = self.expected

    def step(self):
        if self.pending == 0 and self.tx == 0:
            self.phase += 1
            self.pending = self.expected


def one_thread(seed):
    """Forty random operations: their PTX, and what each stores to g0."""
    rng, m = random.Random(seed), Model(9)
    code, want = ["mov.u32 t7, bars; mbarrier.init.shared.b64 [t7], 9;"], []

    def store(value, expression, register="t0"):
        code.append(f"{expression} st.global.u32 [g0+{4 * len(want)}], {register};")
        want.append(value)

    for _ in range(40):
        n = rng.randint(1, max(1, m.pending - 1))
        kind = rng.randrange(8)
        if kind == 0 and n < m.pending:
            store(
                m.pending,
                f"mbarrier.arrive.noComplete.shared.b64 x0, [t7], {n};"
                "mbarrier.pending_count.b64 t0, x0;",
            )
            m.pending -= n
        elif kind == 1:
            size = rng.randrange(0, 64, 4)
            code.append(f"mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [t7], {size};")
            m.tx += size
            m.pending -= 1
        elif kind == 2:
            size = rng.randrange(4, 64, 4)
            code.append(f"mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [t7], {size};")
            m.tx += size
        elif kind == 3 and m.tx:
            size = rng.choice([m.tx, m.tx // 2])
            code.append(f"mbarrier.complete_tx.shared::cluster.relaxed.cluster.b64 [t7], {size};")
            m.tx -= size
        elif kind == 4 and m.expected > 2 and m.pending > 1:
            code.append("mbarrier.arrive_drop.shared.b64 x1, [t7];")
            m.expected -= 1
            m.pending -= 1
        elif m.pending:
            code.append(f"mbarrier.arrive.shared.b64 x0, [t7], {n};")
            before, m.pending = m.phase, m.pending - n
            m.step()
            store(
                int(m.phase != before),
                "mbarrier.test_wait.shared.b64 p0, [t7], x0;selp.u32 t0, 1, 0, p0;",
            )
        if m.pending == 0 and m.tx:
            code.append(f"mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [t7], {m.tx};")
            m.tx = 0
        m.step()
        for parity in (0, 1):
            store(
                int(m.phase % 2 != parity),
                "selp.u32 t0, 1, 0, p1;".join(
                    [f"mbarrier.test_wait.parity.shared.b64 p1, [t7], {parity};", ""]
                ),
            )
    return "\n".join(code), want


@pytest.mark.parametrize("seed", range(6))
def test_operations_follow_the_manual(seed):
    code, want = one_thread(seed)
    out = zeros(len(want))
    run(code, out, block=1)
    assert out.tolist() == want
    assert sum(want) > 0


def mirror(between, threads=128, count=None):
    """Each thread writes its word of the tile and reads that of the mirrored thread."""
    return (
        start(count or threads)
        + at("g0", 4)
        + f"""
        shl.b32 t1, tid, 2; add.u32 t1, t1, t6; mad.lo.u32 t2, tid, 10, 3; st.shared.u32 [t1], t2;
        {between}
        sub.u32 t3, {threads - 1}, tid; mad.lo.u32 t3, t3, 4, t6; ld.shared.u32 t4, [t3];
        st.global.u32 [x0], t4;"""
    )


TOKEN = "LOOP: mbarrier.{}.b64 p1, [t7], x1{}; @!p1 bra LOOP;"
ORDERS = {
    "parity": "mbarrier.arrive.shared::cta.b64 _, [t7];" + wait(),
    "token": "mbarrier.arrive.shared.b64 x1, [t7];" + TOKEN.format("try_wait.shared", ""),
    "hint": "mbarrier.arrive.shared.b64 x1, [t7];" + TOKEN.format("try_wait.shared::cta", ", 1000"),
    "test": "mbarrier.arrive.shared.b64 x1, [t7];" + TOKEN.format("test_wait.shared", ""),
    "acquire": "mbarrier.arrive.release.cluster.shared::cta.b64 x1, [t7], 1;"
    + TOKEN.format("try_wait.acquire.cluster.shared::cta", ""),
    "fence-before": "fence.acq_rel.cta; mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [t7];"
    + wait(),
    "fence-after": "mbarrier.arrive.shared::cta.b64 _, [t7];"
    + wait().replace("parity.shared", "parity.relaxed.cta.shared")
    + "membar.cta;",
    "generic": "cvt.u64.u32 x2, t7; cvta.shared.u64 x2, x2; mbarrier.arrive.b64 x1, [x2];"
    + TOKEN.format("try_wait", "").replace("t7", "x2"),
}


@pytest.mark.parametrize("threads", [32, 128])
@pytest.mark.parametrize("form", ORDERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_wait_sees_what_arrived(form, threads, seed):
    """Between warps, and between the lanes of one."""
    out = zeros(threads)
    run(mirror(ORDERS[form], threads), out, block=threads, seed=seed)
    assert out.tolist() == [10 * (threads - 1 - i) + 3 for i in range(threads)]


@pytest.mark.parametrize("threads", [32, 128])
@pytest.mark.parametrize(
    "between",
    [
        "mbarrier.arrive.shared::cta.b64 _, [t7];",
        "mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [t7];" + wait(),
        "mbarrier.arrive.shared::cta.b64 _, [t7];"
        + wait().replace("parity.shared", "parity.relaxed.cta.shared"),
        wait(1),  # the phase before the first is complete
    ],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_without_release_or_acquire_it_is_a_race(between, threads, seed):
    with pytest.raises(SharedRace, match=r"after a (write|read)"):
        run(mirror(between, threads), zeros(threads), block=threads, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_wait_for_an_earlier_phase_sees_no_later_arrivals(seed):
    """Every thread passes phase 0 before it writes; only phase 1 is about the writes."""
    body = "mbarrier.arrive.shared::cta.b64 _, [t7];" + wait()
    again = "mbarrier.arrive.shared::cta.b64 _, [t7];"
    good = mirror(again + wait(1)).replace("shl.b32 t1, tid, 2;", body + "shl.b32 t1, tid, 2;")
    out = zeros(128)
    run(good, out, seed=seed)
    assert out.tolist() == [10 * (127 - i) + 3 for i in range(128)]
    bad = mirror(again + wait(0)).replace("shl.b32 t1, tid, 2;", body + "shl.b32 t1, tid, 2;")
    shown = (SharedRace, Hang)
    with pytest.raises(shown):
        run(bad, zeros(128), seed=seed)
