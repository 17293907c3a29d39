// Clusters: addresses of other blocks' shared memory, the barrier of all their threads, and what they leave behind.
#include <algorithm>

#include "async_proxy.h"

namespace emu {
namespace {

constexpr uint64_t kOffsets = (1ull << kRankShift) - 1;

uint32_t rank_of(const Block& b, uint64_t address) {
  const uint32_t tag = static_cast<uint32_t>(address) >> kRankShift;
  return tag ? tag - 1 : b.rank;
}

// Operands: d, address, rank. imm: [0] the registers have 64 bits, [1] the address is generic.
void mapa(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    uint64_t address = i.imm[0] ? get<uint64_t>(w, o[1], lane) : get<uint32_t>(w, o[1], lane);
    const uint32_t rank = get<uint32_t>(w, o[2], lane);
    if (i.imm[1] && (address < kSharedWindow || address >= kSharedWindow + kWindowSize)) {
      fault(kInvalid, lane, "mapa of an address that is not in shared memory");
    }
    if (rank >= w.block->cluster->blocks.size()) {
      fault(kInvalid, lane, "mapa to rank %u of a cluster of %zu", rank, w.block->cluster->blocks.size());
    }
    address = (address & ~(0xffull << kRankShift)) | static_cast<uint64_t>(rank + 1) << kRankShift;
    i.imm[0] ? set<uint64_t>(w, o[0], lane, address) : set<uint32_t>(w, o[0], lane, address);
  }
}

// Operands: d, address. imm: [0] the address has 64 bits.
void getctarank(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const uint64_t address = i.imm[0] ? get<uint64_t>(w, o[1], lane) : get<uint32_t>(w, o[1], lane);
    set<uint32_t>(w, o[0], lane, rank_of(*w.block, address));
  }
}

// Operands: d, address: whether it is in the own block's shared memory.
void is_own_shared(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const uint64_t a = get<uint64_t>(w, o[1], lane);
    const bool shared = a >= kSharedWindow && a < kSharedWindow + kWindowSize;
    set_predicate(w, o[0], 1u << lane, shared && rank_of(*w.block, a) == w.block->rank ? ~0u : 0);
  }
}

void complete_if_due(Cluster& c) {
  bool any = false;
  for (auto& block : c.blocks) {
    for (const Warp& w : block->warps) {
      if (w.live & ~w.cluster_arrived) return;
      any |= w.cluster_arrived != 0;
    }
  }
  if (!any) return;
  ++c.machine->counts.barriers;
  c.expiries = 0;
  c.completed = c.arriving;
  for (auto& block : c.blocks) {
    for (Warp& w : block->warps) {
      w.cluster_released = w.cluster_arrived & w.live, w.cluster_arrived = 0;
      for (int lane = 0; lane < kLanes; ++lane) {
        if (w.state[lane] == Lane::waiting && w.wait_for[lane] == kClusterBarrier) w.state[lane] = Lane::run;
      }
    }
  }
}

// imm: [0] relaxed.
void cluster_arrive(Warp& w, const Inst& i, uint32_t mask) {
  const uint32_t again = mask & (w.cluster_arrived | w.cluster_released);
  if (again) fault(kInvalid, __builtin_ctz(again), "a second barrier.cluster.arrive with no wait between");
  Published& to = w.block->cluster->arriving;
  i.imm[0] ? release_relaxed(w, to) : release(w, mask, to);
  w.cluster_arrived |= mask;
  complete_if_due(*w.block->cluster);
}

void cluster_wait(Warp& w, const Inst&, uint32_t mask) {
  const uint32_t early = mask & ~(w.cluster_arrived | w.cluster_released);
  if (early) fault(kInvalid, __builtin_ctz(early), "barrier.cluster.wait without an arrive before");
  const uint32_t pass = mask & w.cluster_released;
  w.cluster_released &= ~pass;
  if (pass) acquire(w, pass, w.block->cluster->completed);
  w.parked = mask & ~pass;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (has(w.parked, lane)) w.wait_for[lane] = kClusterBarrier;
  }
}

const bool registered = [] {
  add("mapa", mapa), add("getctarank", getctarank), add("isspacep.own", is_own_shared);
  add("cluster.arrive", cluster_arrive), add("cluster.wait", cluster_wait);
  add("cluster.arrive.aligned", cluster_arrive, Kind::sync), add("cluster.wait.aligned", cluster_wait, Kind::sync);
  return true;
}();

}  // namespace

Block& block_of(Warp& w, int lane, uint64_t& address) {
  const uint32_t rank = rank_of(*w.block, address);
  Cluster& c = *w.block->cluster;
  if (rank >= c.blocks.size()) {
    fault(kOutOfBounds, lane, "shared memory at 0x%llx is in no block of the cluster",
          static_cast<unsigned long long>(address));
  }
  Block& b = *c.blocks[rank];
  if (b.exited) fault(kOutOfBounds, lane, "access to shared memory of rank %u, whose block has exited", rank);
  address &= kOffsets;
  return b;
}

Block& shared_block(Warp& w, int lane, Space space, uint64_t& address) {
  if (space == Space::generic && (address < kSharedWindow || address >= kSharedWindow + kWindowSize)) {
    fault(kInvalid, lane, "0x%llx is not an address of shared memory", static_cast<unsigned long long>(address));
  }
  address &= 0xffffffff;
  if (space != Space::shared) return block_of(w, lane, address);
  if (address > kOffsets) fault(kOutOfBounds, lane, "a shared::cluster address where shared::cta is meant");
  return *w.block;
}

void lanes_left(Warp& w, uint32_t lanes) {
  Cluster& c = *w.block->cluster;
  c.expiries = 0;
  if (c.blocks.size() > 1) release(w, lanes, c.arriving);
  w.cluster_arrived &= w.live;
  complete_if_due(c);
}

void check_exit(Block& b) {
  Cluster& c = *b.cluster;
  Machine& m = *c.machine;
  std::vector<uint32_t> known;
  for (const Warp& w : b.warps) join(known, w.clock);
  for (const Transfer& t : c.transfers) {
    const bool here = std::any_of(t.targets.begin(), t.targets.end(), [&](auto* x) { return x->block == &b; });
    const bool from_here = t.source_bytes && t.warp->block == &b;
    if (!here && !from_here) continue;
    m.running = t.warp;
    fault(kSharedRace, t.lane, "a block exits while the copy of {inst %d} uses its shared memory", t.inst);
  }
  for (const Store& store : c.stores) {
    if (store.warp->block != &b || store.read) continue;
    m.running = store.warp;
    fault(kSharedRace, store.lane,
          "a block exits while the copy of {inst %d} may still read its shared memory: no wait_group.read", store.inst);
  }
  const int own = b.warps.size();
  for (size_t v = 0; v < b.far_clock.size(); ++v) {
    if (b.far_clock[v] <= (v < known.size() ? known[v] : 0)) continue;
    m.running = &b.warps[0];
    if (static_cast<int>(v) >= c.warps()) fault(kSharedRace, 0, "a block exits without having waited for a bulk copy");
    fault(kSharedRace, 0, "a block exits though warp %zu of rank %zu may still use its shared memory", v % own,
          v / own);
  }
}

}  // namespace emu
