"""PTX that the tests of the asynchronous machinery share: barriers, waits and copies of sm_90."""

from __future__ import annotations

import itertools

import torch

from cuda_on_cpu import emulate
from cuda_on_cpu.ptx_snippets import at, module

SHARED = ".shared .align 1024 .b8 tile[32768]; .shared .align 8 .b8 bars[64];"
FIRST = "setp.eq.u32 p0, tid, 0;"  # of the block's threads, in p0
FENCE = "fence.proxy.async.shared::cta;"
_labels = itertools.count()


def start(count=1, barriers=1):
    """``t7`` is the address of the first barrier, ``t6`` of the tile; thread 0 is p0."""
    inits = "".join(
        f"@p0 mbarrier.init.shared::cta.b64 [t7+{8 * i}], {count};" for i in range(barriers)
    )
    return f"{FIRST} mov.u32 t7, bars; mov.u32 t6, tile; {inits} bar.sync 0;\n"


def wait(phase=0, at="t7"):
    """Spins until the phase of that parity is complete."""
    label = f"WAIT{next(_labels)}"
    attempt = f"mbarrier.try_wait.parity.shared::cta.b64 p3, [{at}], {phase};"
    return f"{label}: {attempt} @!p3 bra {label};\n"


def expect(size, at="t7", guard="@p0 "):
    return f"{guard}mbarrier.arrive.expect_tx.shared::cta.b64 _, [{at}], {size};\n"


def bulk(size, to="t6", source="g0", at="t7", guard="@p0 "):
    kind = "shared::cluster.global.mbarrier::complete_tx::bytes"
    return f"{guard}cp.async.bulk.{kind} [{to}], [{source}], {size}, [{at}];\n"


def bulk_store(size, to="g1", source="t6", guard="@p0 "):
    return f"{guard}cp.async.bulk.global.shared::cta.bulk_group [{to}], [{source}], {size};\n"


def wait_stores(read="", left=0):
    return f"cp.async.bulk.commit_group; cp.async.bulk.wait_group{read} {left};\n"


def run(body, *tensors, block=128, grid=1, outside=SHARED, **options):
    """Launches ``body`` for sm_90a."""
    kernel = emulate(module(body, len(tensors), outside=outside, target="sm_90a"))
    return kernel[grid, block](*tensors, max_steps=1_000_000, **options)


WORD = "shl.b32 t1, tid, 2; add.u32 t1, t1, t6;\n"  # t1: the thread's word of the tile
GIVE = at("g1", 4, "x1") + WORD + "ld.shared.u32 t2, [t1]; st.global.u32 [x1], t2;\n"
FILL = WORD + "mad.lo.u32 t2, tid, 7, 1; st.shared.u32 [t1], t2;\n"
FILLED = 7 * torch.arange(128, dtype=torch.int32) + 1


def data(n=128):
    return torch.arange(1000, 1000 + n, dtype=torch.int32)
