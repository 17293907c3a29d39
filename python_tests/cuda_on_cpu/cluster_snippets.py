"""PTX that the tests of clusters share: two blocks of 128 threads that exchange a tile."""

from __future__ import annotations

from cuda_on_cpu import emulate
from cuda_on_cpu.async_snippets import SHARED
from cuda_on_cpu.ptx_snippets import module

SYNC = "barrier.cluster.arrive; barrier.cluster.wait;"


def run(body, *tensors, grid=2, block=128, cluster=(2, 1, 1), **options):
    text = module(body, len(tensors), outside=SHARED, target="sm_90a")
    options = {"max_steps": 1_000_000, "cluster": cluster, **options}
    return emulate(text)[grid, block](*tensors, **options)


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
