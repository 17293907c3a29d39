// Four consecutive warps, from a multiple of four, that come to a warpgroup's instruction one by one and run it once.
#include <algorithm>

#include "machine.h"

namespace emu {
namespace {

constexpr uint32_t kAll = (1u << kGroupWarps) - 1;

// setmaxnreg.inc goes on when the block has given back enough.
bool takes_registers(Block& b, Warpgroup& g) {
  if (g.wanted == 0) return true;
  const int64_t more = (g.wanted - g.registers) * kGroupWarps * kLanes;
  if (more > b.warpgroups.free_registers) return false;
  b.warpgroups.free_registers -= more;
  g.registers = g.wanted, g.wanted = 0;
  return true;
}

// Whether this warp is the last of its warpgroup to come to `i`.
bool all_here(Warp& w, const Inst& i) {
  Warpgroup& g = warpgroup_of(w);
  const Block& b = *w.block;
  const Inst* insts = b.machine->program.insts;
  const size_t first = w.index / kGroupWarps * kGroupWarps;
  if (w.live != ~0u) {
    fault(kBarrierDivergence, __builtin_ctz(w.live), "a warpgroup's instruction, but threads of the warp have exited");
  }
  if (first + kGroupWarps > b.warps.size()) {
    fault(kBarrierDivergence, 0, "warps %zu to %zu are no whole warpgroup: it has %d", first, b.warps.size() - 1,
          kGroupWarps);
  }
  if (g.arrived && g.at != &i) {
    fault(kBarrierDivergence, 0, "warp %d is here, and warp %zu of the same warpgroup at {inst %zd}", w.index,
          first + __builtin_ctz(g.arrived), g.at - insts);
  }
  g.at = &i;
  g.arrived |= 1u << (w.index - first);
  return g.arrived == kAll;
}

// Those that are complete and wait for nothing else go on.
void resume_all(Block& b) {
  for (size_t k = 0; k < b.warpgroups.groups.size(); ++k) {
    Warpgroup& g = b.warpgroups.groups[k];
    if (g.arrived != kAll || !takes_registers(b, g)) continue;
    g.arrived = 0;
    for (int v = 0; v < kGroupWarps; ++v) {
      Warp& w = b.warps[k * kGroupWarps + v];
      std::fill_n(w.state, kLanes, Lane::run);
      for (int32_t& pc : w.pc) ++pc;
    }
  }
}

}  // namespace

void start_warpgroups(Block& b) {
  const size_t groups = (b.warps.size() + kGroupWarps - 1) / kGroupWarps;
  b.warpgroups.groups.resize(groups);
  const int watched = b.machine->watched.count;
  for (Warpgroup& g : b.warpgroups.groups) g.writes.assign(watched, 0), g.fragments.assign(watched, 0);
  for (Warp& w : b.warps) w.use.touched.assign(watched, 1), w.use.shape.assign(watched, 0);
  if (watched == 0) return;
  const size_t granules = b.shared.size() / kGranule + 1;
  b.warpgroups.reading.assign(granules, 0);
  b.warpgroups.landed.assign(granules * b.warps.size(), 0);
}

Warpgroup& warpgroup_of(Warp& w) { return w.block->warpgroups.groups[w.index / kGroupWarps]; }

Warp& first_warp(Warp& w) { return w.block->warps[w.index / kGroupWarps * kGroupWarps]; }

void meet(Warp& w, const Inst& i) {
  std::fill_n(w.state, kLanes, Lane::at_warpgroup);
  if (!all_here(w, i)) return;
  handler(i.handler).run(first_warp(w), i, ~0u);
  w.block->machine->running = &w;  // the handler has named each of the four in turn
  resume_all(*w.block);
}

std::string waits_in_warpgroup(Warp& w) {
  const Warpgroup& g = warpgroup_of(w);
  if (g.wanted == 0) return "waits for the other warps of its warpgroup";
  return "waits for " + std::to_string(g.wanted - g.registers) + " more registers per thread, where the block has " +
         std::to_string(w.block->warpgroups.free_registers) + " in all left";
}

}  // namespace emu
