"""Clusters: their registers, each other's shared memory, their barrier, multicast, and misuse."""

from __future__ import annotations

import pytest

from cuda_on_cpu import emulate
from cuda_on_cpu.cluster_snippets import EXCHANGED, OUT, PEER, PEERS, READS, SYNC, run
from cuda_on_cpu.errors import (
    BadLaunch,
    EmulationError,
    GlobalRace,
    Hang,
    Invalid,
    OutOfBounds,
    SharedRace,
    Unsupported,
)
from cuda_on_cpu.ptx_snippets import module, zeros

SEEDS = range(4)
REGISTERS = [
    *(f"{name}.{d}" for name in ("ctaid", "cluster_ctaid", "clusterid") for d in "xyz"),
    *(f"{name}.{d}" for name in ("cluster_nctaid", "nclusterid") for d in "xyz"),
    "cluster_ctarank",
    "cluster_nctarank",
]


@pytest.mark.parametrize("cluster", [(2, 1, 1), (1, 2, 1), (2, 3, 1), (1, 1, 2), (4, 1, 2), None])
def test_special_registers(cluster):
    grid, n = (4, 6, 2), len(REGISTERS) + 1
    out = zeros(48 * n)
    body = "mov.u32 t1, %ctaid.y; mov.u32 t2, %ctaid.x; mov.u32 t0, %ctaid.z;"
    body += "mad.lo.u32 t0, t0, 6, t1; mad.lo.u32 t0, t0, 4, t2;"
    body += f"mad.wide.u32 x1, t0, {4 * n}, g0;"
    for i, name in enumerate(REGISTERS):
        body += f"mov.u32 t3, %{name}; st.global.u32 [x1+{4 * i}], t3;"
    body += "mov.pred p1, %is_explicit_cluster; selp.u32 t3, 1, 0, p1;"
    body += f"st.global.u32 [x1+{4 * n - 4}], t3;"
    run(body, out, grid=grid, block=1, cluster=cluster)
    size = cluster or (1, 1, 1)
    for row in out.view(48, n).tolist():
        at = row[:3]
        within = [a % s for a, s in zip(at, size, strict=True)]
        rank = (within[2] * size[1] + within[1]) * size[0] + within[0]
        blocks = size[0] * size[1] * size[2]
        want = [*at, *within, *(a // s for a, s in zip(at, size, strict=True))]
        want += [*size, *(g // s for g, s in zip(grid, size, strict=True))]
        assert row == [*want, rank, blocks, int(cluster is not None)]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_read_each_other(read, seed):
    out = zeros(256)
    run(PEERS + SYNC + READS[read] + OUT + SYNC, out, seed=seed)
    assert out.tolist() == EXCHANGED


@pytest.mark.parametrize(
    "sync",
    [
        "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;",
        "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
        "barrier.cluster.arrive.release; bar.sync 0; barrier.cluster.wait;",
        "fence.acq_rel.cluster; barrier.cluster.arrive.relaxed; barrier.cluster.wait;",
    ],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_forms_of_the_barrier(sync, seed):
    out = zeros(256)
    run(PEERS + sync + READS["mapa"] + OUT + sync, out, seed=seed)
    assert out.tolist() == EXCHANGED


@pytest.mark.parametrize(
    "sync",
    ["", "bar.sync 0;", "barrier.cluster.arrive.relaxed; fence.sc.cluster; barrier.cluster.wait;"],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_without_an_order_it_is_a_race(sync, seed):
    with pytest.raises(SharedRace, match="of rank"):
        run(PEERS + sync + READS["mapa"] + OUT + SYNC, zeros(256), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_barrier_orders_the_lanes_of_a_warp_and_global_memory(seed):
    body = PEER + """mad.lo.u32 t4, t0, 32, tid; mad.wide.u32 x1, t4, 4, g0; st.global.u32 [x1], t4;
        mov.u32 t6, tile; mad.lo.u32 t1, tid, 4, t6; st.shared.u32 [t1], tid;""" + SYNC + """
        mad.lo.u32 t4, t2, 32, tid; mad.wide.u32 x2, t4, 4, g0; ld.global.u32 t5, [x2];
        xor.b32 t1, tid, 31; mad.lo.u32 t1, t1, 4, t6; ld.shared.u32 t3, [t1];
        mad.lo.u32 t3, t3, 1000, t5; mad.lo.u32 t4, t0, 32, tid; mad.wide.u32 x1, t4, 4, g1;
        st.global.u32 [x1], t3;"""  # fmt: skip
    out = zeros(64)
    run(body, zeros(64), out, block=32, seed=seed)
    want = [(31 - i) * 1000 + 32 * (1 - rank) + i for rank in range(2) for i in range(32)]
    assert out.tolist() == want
    with pytest.raises((GlobalRace, SharedRace)):
        run(body.replace(SYNC, "bar.sync 0;"), zeros(64), out, block=32, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_block_may_not_leave_before_others_have_read(seed):
    with pytest.raises((SharedRace, OutOfBounds), match="exit"):
        run(PEERS + SYNC + READS["mapa"] + OUT, zeros(256), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_exited_threads_have_arrived(seed):
    out = zeros(256)
    some = "setp.lt.u32 p1, tid, 96; @!p1 exit;"
    run(PEERS + SYNC + READS["mapa"] + OUT + some + SYNC, out, seed=seed)
    assert out.tolist() == EXCHANGED


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("mov.u32 t2, 2; mapa.shared::cluster.u32 t5, t6, t2;", Invalid),
        ("mapa.u64 x3, g0, t2;", Invalid),
        ("mapa.shared::cluster.u32 t5, t6, t2; ld.shared.u32 t3, [t5];", OutOfBounds),
        ("mov.u32 t5, 0x5000000; ld.shared::cluster.u32 t3, [t5];", OutOfBounds),
        ("mapa.shared::cluster.u32 t5, t6, t2; ld.shared::cluster.u32 t3, [t5+65536];",
         OutOfBounds),
        ("barrier.cluster.arrive; barrier.cluster.arrive;", Invalid),
        ("barrier.cluster.wait;", Invalid),
        ("setp.lt.u32 p1, tid, 5; @p1 bra OUT; barrier.cluster.arrive.aligned;"
         "barrier.cluster.wait.aligned; OUT: bar.sync 0;", EmulationError),
    ],
)  # fmt: skip
def test_misuse(code, error):
    with pytest.raises(error):
        run(PEER + "mov.u32 t6, tile;" + code, zeros(1))


def test_a_block_that_never_arrives_is_named():
    body = PEER + "setp.eq.u32 p1, t0, 1; @p1 bar.sync 1, 256; " + SYNC
    with pytest.raises(Hang, match=r"of rank 0 on: waits at the cluster's barrier"):
        run(body, zeros(1))


@pytest.mark.parametrize(
    ("directive", "options", "match"),
    [
        (".reqnctapercluster 2, 1, 1", {"cluster": (4, 1, 1)}, "the kernel declares"),
        ("", {"cluster": (16, 1, 1)}, "at most 8"),
        (".maxclusterrank 2", {"cluster": (4, 1, 1)}, "at most 2"),
        ("", {"cluster": (3, 1, 1)}, "not a multiple"),
        ("", {"cluster": (2, 1, 1), "target": "sm_80"}, "sm_90"),
    ],
)
def test_what_a_launch_refuses(directive, options, match):
    text = module("", 1, target=options.pop("target", "sm_90a"))
    text = text.replace(")\n{", f") {directive}\n{{", 1)
    with pytest.raises(BadLaunch, match=match):
        emulate(text)[16, 32](zeros(1), **options)


def test_the_kernels_own_cluster_is_taken():
    body = "mov.u32 t3, %cluster_nctarank; st.global.u32 [g0], t3;"
    text = module(body, 1, target="sm_90a")
    text = text.replace(")\n{", ") .explicitcluster .reqnctapercluster 2, 2, 1\n{", 1)
    out = zeros(1)
    emulate(text)[(2, 2), 1](out)
    assert out.item() == 4


@pytest.mark.parametrize("address", ["own", "peer"])
def test_getctarank_and_isspacep(address):
    body = (
        PEER
        + f"""mov.u32 t6, tile; cvt.u64.u32 x2, t6; cvta.shared.u64 x2, x2;
        mapa.u64 x3, x2, {"t0" if address == "own" else "t2"}; getctarank.u64 t3, x3;
        isspacep.shared::cta p1, x3; isspacep.shared::cluster p2, x3; isspacep.global p3, x3;
        selp.u32 t4, 10, 0, p1; add.u32 t3, t3, t4; selp.u32 t4, 100, 0, p2; add.u32 t3, t3, t4;
        selp.u32 t4, 1000, 0, p3; add.u32 t3, t3, t4; mad.wide.u32 x1, t0, 4, g0;
        st.global.u32 [x1], t3;"""
    )
    out = zeros(2)
    run(body, out, block=1)
    assert out.tolist() == ([110, 111] if address == "own" else [101, 100])


@pytest.mark.parametrize(
    "code",
    [
        "barrier.cluster.sync;",
        "bar.wait 0;",
        "barrier.cluster.wait.release;",
        "mapa.u64.x x0, x1, t0;",
    ],
)
def test_other_forms_are_refused(code):
    with pytest.raises(Unsupported, match="PTX line"):
        emulate(module(code, target="sm_90a"))
