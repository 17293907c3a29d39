"""Clusters: their registers, each other's shared memory, their barrier, multicast, and misuse."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import emulate
from cuda_on_cpu.async_snippets import FENCE, SHARED, bulk, expect, start, wait
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
SYNC = "barrier.cluster.arrive; barrier.cluster.wait;"


def run(body, *tensors, grid=2, block=128, cluster=(2, 1, 1), **options):
    text = module(body, len(tensors), outside=SHARED, target="sm_90a")
    options = {"max_steps": 1_000_000, "cluster": cluster, **options}
    return emulate(text)[grid, block](*tensors, **options)


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


PEER = "mov.u32 t0, %cluster_ctarank; xor.b32 t2, t0, 1;"
OUT = "mad.lo.u32 t4, t0, 128, tid; mad.wide.u32 x1, t4, 4, g0; st.global.u32 [x1], t3;"
WRITE = (
    "mad.lo.u32 t3, t0, 1000, tid; shl.b32 t1, tid, 2; add.u32 t1, t1, t6; st.shared.u32 [t1], t3;"
)
READS = {
    "mapa": "mapa.shared::cluster.u32 t5, t1, t2; ld.shared::cluster.u32 t3, [t5];",
    "generic": "cvt.u64.u32 x2, t1; cvta.shared.u64 x2, x2; mapa.u64 x3, x2, t2; ld.u32 t3, [x3];",
    "converted": "cvt.u64.u32 x2, t1; cvta.shared::cta.u64 x2, x2; mapa.u64 x3, x2, t2;"
    "cvta.to.shared::cluster.u64 x3, x3; ld.shared::cluster.u32 t3, [x3];",
    "atomic": "mapa.shared::cluster.u32 t5, t1, t2; atom.shared::cluster.add.u32 t3, [t5], 0;",
}
PEERS = PEER + "mov.u32 t6, tile;" + WRITE
EXCHANGED = [1000 * (1 - rank) + i for rank in range(2) for i in range(128)]


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
    ],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_forms_of_the_barrier(sync, seed):
    out = zeros(256)
    run(PEERS + sync + READS["mapa"] + OUT + sync, out, seed=seed)
    assert out.tolist() == EXCHANGED


@pytest.mark.parametrize(
    "sync",
    ["", "bar.sync 0;", "barrier.cluster.arrive.relaxed; barrier.cluster.wait;"],
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


ARRIVE = "mapa.shared::cluster.u32 t5, t7, t2; mbarrier.arrive{} _, [t5];"
FORMS = [".release.cluster.shared::cluster.b64", ".shared::cluster.b64"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_arrivals_at_the_peers_mbarrier(form, seed):
    """Each thread arrives at the other block's barrier and waits at its own."""
    body = start(128) + SYNC + PEERS + ARRIVE.format(form) + wait() + READS["mapa"] + OUT + SYNC
    out = zeros(256)
    run(body, out, seed=seed)
    assert out.tolist() == EXCHANGED
    with pytest.raises(SharedRace, match="of rank"):
        run(
            body.replace(wait()[:4], "WAIT").replace(".parity", ".parity.relaxed.cluster"),
            zeros(256),
            seed=seed,
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_generic_arrivals(seed):
    remote = "cvt.u64.u32 x2, t7; cvta.shared.u64 x2, x2; mapa.u64 x3, x2, t2;"
    remote += "mbarrier.arrive.b64 _, [x3];"
    out = zeros(256)
    run(start(128) + SYNC + PEERS + remote + wait() + READS["mapa"] + OUT + SYNC, out, seed=seed)
    assert out.tolist() == EXCHANGED


@pytest.mark.parametrize("kind", ["b32", "v2.b32", "v4.b32", "b64"])
@pytest.mark.parametrize("seed", SEEDS)
def test_st_async(kind, seed):
    """Sixteen threads give the peer some bytes each, which its mbarrier counts."""
    size = {"b32": 4, "v2.b32": 8, "v4.b32": 16, "b64": 8}[kind]
    value = {"b32": "t3", "v2.b32": "{t3, t3}", "v4.b32": "{t3, t3, t3, t3}", "b64": "x4"}[kind]
    opcode = f"st.async.shared::cluster.mbarrier::complete_tx::bytes.{kind}"
    body = start() + SYNC + PEER + expect(16 * size) + f"""
        mapa.shared::cluster.u32 t4, t7, t2; mapa.shared::cluster.u32 t5, t6, t2;
        mad.lo.u32 t5, tid, {size}, t5; mad.lo.u32 t3, t0, 1000, tid;
        mul.wide.u32 x4, t3, 1; mov.b64 x5, {{t3, t3}}; mov.b64 x4, x5;
        setp.lt.u32 p1, tid, 16; @p1 {opcode} [t5], {value}, [t4];
        {wait()} mad.lo.u32 t1, tid, 4, t6; setp.lt.u32 p1, tid, {4 * size}; mov.u32 t3, 0;
        @p1 ld.shared.u32 t3, [t1];""" + OUT + SYNC  # fmt: skip
    out = zeros(256)
    run(body, out, seed=seed)
    words = size // 4
    for rank in range(2):
        want = [1000 * (1 - rank) + i // words for i in range(16 * words)]
        assert out[128 * rank :][: 16 * words].tolist() == want


@pytest.mark.parametrize("seed", SEEDS)
def test_bulk_copies_between_blocks(seed):
    kind = "shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
    copy = f"@p0 cp.async.bulk.{kind} [t5], [t6], 512, [t4];"
    body = start() + SYNC + PEERS + FENCE + "bar.sync 0;" + expect(512) + """
        mapa.shared::cluster.u32 t4, t7, t2; mapa.shared::cluster.u32 t5, t6, t2;
        add.u32 t5, t5, 512;
        """ + copy + wait() + "ld.shared.u32 t3, [t1+512];" + OUT + SYNC  # fmt: skip
    out = zeros(256)
    run(body, out, seed=seed)
    assert out.tolist() == EXCHANGED
    with pytest.raises(SharedRace, match=r"no fence.proxy.async"):
        run(body.replace(FENCE, ""), zeros(256), seed=seed)
    with pytest.raises((SharedRace, Hang)):
        run(body.replace(wait()[:4], "LOOK").replace("[t7], 0", "[t7], 1"), zeros(256), seed=seed)
    with pytest.raises(Invalid, match="not in the shared memory that it writes"):
        run(body.replace("512, [t4]", "512, [t7]"), zeros(256), seed=seed)


CAST = (
    bulk(512, "t6", "x4")
    .replace("bytes [", "bytes.multicast::cluster [")
    .replace("[t7];", "[t7], {};")
)


@pytest.mark.parametrize("seed", SEEDS)
def test_multicast(seed):
    """Rank 1 loads for ranks 0, 1 and 3 of four; rank 2 gets nothing."""
    source, out = torch.arange(500, 628, dtype=torch.int32), zeros(512)
    body = start() + SYNC + PEER + """
        mov.u32 t3, 7; setp.eq.u32 p1, t0, 2; @p1 bra GIVE; mov.u64 x4, g1;""" + expect(512) + """
        setp.ne.u32 p1, t0, 1; @p1 bra LATER;""" + CAST.format("0b1011") + "LATER:" + wait() + """
        mad.lo.u32 t1, tid, 4, t6; ld.shared.u32 t3, [t1];
        GIVE:""" + OUT + SYNC  # fmt: skip
    run(body, out, source, grid=4, cluster=4, seed=seed)
    assert out.view(4, 128)[[0, 1, 3]].tolist() == 3 * [source.tolist()]
    assert out.view(4, 128)[2].tolist() == 128 * [7]
    with pytest.raises(Hang, match="512 bytes are missing"):
        run(body.replace("0b1011", "0b0011"), out, source, grid=4, cluster=4, seed=seed)
    with pytest.raises(EmulationError):
        run(body.replace("0b1011", "0b1111"), out, source, grid=4, cluster=4, seed=seed)
    with pytest.raises(OutOfBounds, match="no block of the cluster"):
        run(body.replace("0b1011", "0b11011"), out, source, grid=4, cluster=4, seed=seed)


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
