"""mbarrier: misuse, hangs, waits that fail, and arrivals behind cp.async."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import emulate
from cuda_on_cpu.async_snippets import SHARED, expect, run, start, wait
from cuda_on_cpu.errors import EmulationError, Hang, Invalid, Misaligned, SharedRace, Unsupported
from cuda_on_cpu.ptx_snippets import at, module, zeros

SEEDS = range(4)
ONE = "mbarrier.init.shared.b64 [t7], 1;"
MISUSE = {
    "before-init": ("mbarrier.arrive.shared.b64 _, [t7];", Invalid, "no initialised mbarrier"),
    "after-inval": (ONE + "mbarrier.inval.shared.b64 [t7]; mbarrier.arrive.shared.b64 _, [t7];",
                    Invalid, "no initialised mbarrier"),
    "twice": (ONE + ONE, Invalid, "in use"),
    "no-arrivals": ("mbarrier.init.shared.b64 [t7], 0;", Invalid, "0 arrivals"),
    "too-many": (ONE + "mbarrier.arrive.shared.b64 _, [t7], 2;", Invalid, "waits for 1"),
    "count-of-zero": (ONE + "mbarrier.arrive.shared.b64 _, [t7], 0;", Invalid, "0 arrivals"),
    "completes": (ONE + "mbarrier.arrive.noComplete.shared.b64 x0, [t7], 1;", Invalid,
                  "noComplete"),
    "overflow": (ONE + "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [t7], 1048576;", Invalid,
                 "tx-count"),
    "underflow": (ONE + "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [t7], 1048576;", Invalid,
                  "tx-count"),
    "parity": (ONE + "mbarrier.test_wait.parity.shared.b64 p0, [t7], 2;", Invalid, "parity of 2"),
    "old-state": (
        ONE + "mbarrier.arrive.shared.b64 x0, [t7];" + 2 * "mbarrier.arrive.shared.b64 _, [t7];"
        "mbarrier.test_wait.shared.b64 p0, [t7], x0;", Invalid, "state of phase 0"),
    "misaligned": ("mbarrier.init.shared.b64 [t7+4], 1;", Misaligned, "not aligned"),
    "written": (ONE + "st.shared.u32 [t7+4], tid;", Invalid, "where an mbarrier is"),
    "read": (ONE + "ld.shared.u32 t0, [t7];", Invalid, "where an mbarrier is"),
    "global": (ONE + "mbarrier.arrive.b64 _, [g0];", Invalid, "not an address of shared"),
    "cluster-address": (ONE + "add.u32 t7, t7, 0x1000000; mbarrier.arrive.shared::cta.b64 _, [t7];",
                        EmulationError, "shared::cluster address"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_an_error(case):
    code, error, text = MISUSE[case]
    with pytest.raises(error, match=text):
        run("mov.u32 t7, bars;" + code, zeros(1), block=1)


def test_memory_of_an_invalidated_mbarrier_may_be_used():
    out = zeros(1)
    code = "mov.u32 t7, bars;" + ONE + "mbarrier.inval.shared.b64 [t7]; st.shared.u32 [t7], 5;"
    run(code + "ld.shared.u32 t0, [t7]; st.global.u32 [g0], t0;", out, block=1)
    assert out.item() == 5


@pytest.mark.parametrize("seed", SEEDS)
def test_no_synchronisation_after_init(seed):
    """Whichever thread comes first, it shows."""
    body = start(128).replace("bar.sync 0;", "") + "mbarrier.arrive.shared::cta.b64 _, [t7];"
    with pytest.raises(EmulationError, match=r"after its init|no initialised"):
        run(body + wait(), zeros(1), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_arrival_short_hangs_and_says_who_waits(seed):
    body = start(129) + "mbarrier.arrive.shared::cta.b64 _, [t7];" + wait()
    with pytest.raises(Hang, match=r"phase 0: 1 arrivals and 0 bytes are missing") as caught:
        run(body, zeros(1), seed=seed)
    assert "from thread 0 on: waits for the mbarrier at" in str(caught.value)


@pytest.mark.parametrize("seed", SEEDS)
def test_missing_bytes_are_named(seed):
    with pytest.raises(Hang, match=r"0 arrivals and 512 bytes are missing"):
        run(start() + expect(512) + wait(), zeros(1), seed=seed)


@pytest.mark.parametrize("kind", ["try_wait", "test_wait"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_wait_may_fail(kind, seed):
    """A thread that looks, and then does itself what it looked for."""
    body = (
        start(1)
        + f"""
        @!p0 bra DONE;
        mbarrier.{kind}.parity.shared::cta.b64 p1, [t7], 0; selp.u32 t0, 1, 0, p1;
        st.global.u32 [g0], t0; mbarrier.arrive.shared::cta.b64 _, [t7];
        DONE: {wait()}"""
    )
    out = zeros(1) - 1
    run(body, out, seed=seed)
    assert out.item() == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("noinc", "count"), [("", 1), (".noinc", 129)])
def test_an_arrival_behind_cp_async(noinc, count, seed):
    """Without .noinc the arrivals of the copies add to those that init asked for."""
    source, out = torch.arange(128, dtype=torch.int32), zeros(128)
    body = (
        start(count)
        + at("g0", 4)
        + at("g1", 4, "x1")
        + f"""
        mad.lo.u32 t1, tid, 4, t6; cp.async.ca.shared.global [t1], [x0], 4;
        cp.async.mbarrier.arrive{noinc}.shared::cta.b64 [t7]; bar.sync 0;
        @p0 mbarrier.arrive.shared::cta.b64 _, [t7];
        WAIT xor.b32 t3, tid, 127; mad.lo.u32 t3, t3, 4, t6; ld.shared.u32 t4, [t3];
        st.global.u32 [x1], t4;"""
    )
    run(body.replace("WAIT", wait()), source, out, seed=seed)
    assert torch.equal(out, source.flip(0))
    with pytest.raises(SharedRace):
        run(body.replace("WAIT", wait(1)), source, out, seed=seed)


@pytest.mark.parametrize(
    "code",
    [
        "mbarrier.arrive.shared::cluster.b64 x0, [t7];",
        "mbarrier.arrive.acquire.cta.shared.b64 _, [t7];",
        "mbarrier.try_wait.noinc.shared.b64 p0, [t7], x0;",
        "mbarrier.init.shared::cluster.b64 [t7], 1;",
        "mbarrier.arrive.expect_tx.shared.b64 _, [t7];",
        "mbarrier.nonsense.b64 [t7];",
    ],
)
def test_other_forms_are_refused(code):
    with pytest.raises(Unsupported, match="PTX line"):
        emulate(module(code, outside=SHARED, target="sm_90a"))
