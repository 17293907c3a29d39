// How clusters, their blocks and warps begin: memory, special registers, constants.
#include <algorithm>

#include "cluster.h"

namespace emu {
namespace {

uint64_t cluster_special(const Machine& m, const Block& b, int which) {
  const uint32_t* size = m.launch.cluster;
  switch (which) {
    case kClusterCtaidX:
    case kClusterCtaidY:
    case kClusterCtaidZ:
      return b.id[which - kClusterCtaidX] % size[which - kClusterCtaidX];
    case kClusterNctaidX:
    case kClusterNctaidY:
    case kClusterNctaidZ:
      return size[which - kClusterNctaidX];
    case kClusterCtarank:
      return b.rank;
    case kClusterNctarank:
      return size[0] * size[1] * size[2];
    case kClusteridX:
    case kClusteridY:
    case kClusteridZ:
      return b.id[which - kClusteridX] / size[which - kClusteridX];
    case kNclusteridX:
    case kNclusteridY:
    case kNclusteridZ:
      return m.launch.grid[which - kNclusteridX] / size[which - kNclusteridX];
    case kIsExplicitCluster:
      return m.launch.explicit_cluster;
    default:
      return which == kEnvreg1 ? m.launch.workspace >> 32 : m.launch.workspace & 0xffffffff;
  }
}

uint64_t special(const Machine& m, const Warp& w, int lane, int which) {
  const uint32_t* size = m.launch.block;
  const uint32_t thread = w.thread(lane), bit = 1u << lane;
  switch (which) {
    case kTidX:
      return thread % size[0];
    case kTidY:
      return thread / size[0] % size[1];
    case kTidZ:
      return thread / size[0] / size[1];
    case kNtidX:
    case kNtidY:
    case kNtidZ:
      return size[which - kNtidX];
    case kCtaidX:
    case kCtaidY:
    case kCtaidZ:
      return w.block->id[which - kCtaidX];
    case kNctaidX:
    case kNctaidY:
    case kNctaidZ:
      return m.launch.grid[which - kNctaidX];
    case kLaneId:
      return lane;
    case kWarpId:
      return w.index;
    case kLanemaskEq:
      return bit;
    case kLanemaskLt:
      return bit - 1;
    case kLanemaskLe:
      return bit | (bit - 1);
    case kLanemaskGt:
      return ~(bit | (bit - 1));
    case kLanemaskGe:
      return ~(bit - 1);
    case kDynamicShared:
      return m.launch.dynamic_shared;
    case kTotalShared:
      return m.launch.dynamic_shared + m.program.static_shared;
    default:
      return cluster_special(m, *w.block, which);
  }
}

void start(Machine& m, Warp& w) {
  const Program& p = m.program;
  w.storage.assign(p.register_bytes + 64, 0xab);
  w.registers = w.storage.data() + (64 - reinterpret_cast<uintptr_t>(w.storage.data()) % 64);
  w.local.assign(kLanes * p.local_bytes, 0xcd);
  w.clock.assign(w.block->cluster->warps(), 0);
  w.clock[w.number] = 1;
  const int threads = m.launch.block[0] * m.launch.block[1] * m.launch.block[2];
  w.live = 0;
  std::fill_n(&w.known[0][0], kLanes * kLanes, 0);
  for (int lane = 0; lane < kLanes; ++lane) w.known[lane][lane] = 1;
  for (int lane = 0; lane < kLanes; ++lane) {
    w.pc[lane] = 0;
    const bool exists = w.thread(lane) < threads;
    w.state[lane] = exists ? Lane::run : Lane::exited;
    w.live |= static_cast<uint32_t>(exists) << lane;
  }
  for (int64_t k = 0; k < p.num_inits; ++k) {
    const Init& init = p.inits[k];
    const bool flag = init.kind == kSpecial && init.value == kIsExplicitCluster;
    if (init.kind == kConstPred || flag) {
      predicate(w, init.offset) = (flag ? m.launch.explicit_cluster : init.value) ? ~0u : 0;
      continue;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t value = init.kind == kSpecial ? special(m, w, lane, init.value) : init.value;
      init.kind == kConst64 ? set<uint64_t>(w, init.offset, lane, value) : set<uint32_t>(w, init.offset, lane, value);
    }
  }
}

// A block that has ended leaves its memory to the next.
void reuse(Block& block, std::unique_ptr<Block>& old) {
  if (!old) return;
  block.shared.swap(old->shared), block.written.swap(old->written), block.pending.swap(old->pending);
  block.cells.swap(old->cells), block.reads.swap(old->reads);
  for (size_t k = 0; k < block.warps.size(); ++k) {
    block.warps[k].storage.swap(old->warps[k].storage), block.warps[k].local.swap(old->warps[k].local);
  }
  old.reset();
}

std::unique_ptr<Block> make_block(Machine& m, Cluster& c, const uint32_t* id) {
  auto block = std::make_unique<Block>();
  const int threads = m.launch.block[0] * m.launch.block[1] * m.launch.block[2];
  block->warps.resize((threads + kLanes - 1) / kLanes);
  reuse(*block, m.ended);
  const uint32_t* grid = m.launch.grid;
  block->number = (id[2] * grid[1] + id[1]) * grid[0] + id[0] + 1;
  block->machine = &m, block->cluster = &c;
  std::copy_n(id, 3, block->id);
  const size_t shared = m.program.static_shared + m.launch.dynamic_shared;
  block->shared.assign(shared, 0xcd);
  block->written.assign(shared + 1, 0);
  block->pending.assign(shared + 1, 0);
  block->cells.assign(shared / 4 + 1, Cell{});
  if (!block->reads) block->reads.reset(new Touch[block->cells.size() * block->warps.size()]);
  return block;
}

}  // namespace

std::unique_ptr<Cluster> make_cluster(Machine& m, uint64_t index) {
  auto c = std::make_unique<Cluster>();
  c->machine = &m, c->index = index;
  const uint32_t *grid = m.launch.grid, *size = m.launch.cluster;
  const uint64_t x = grid[0] / size[0], y = grid[1] / size[1];
  const uint64_t at[3] = {index % x, index / x % y, index / x / y};
  for (uint32_t rank = 0; rank < size[0] * size[1] * size[2]; ++rank) {
    const uint32_t within[3] = {rank % size[0], rank / size[0] % size[1], rank / size[0] / size[1]};
    uint32_t id[3];
    for (int d = 0; d < 3; ++d) id[d] = at[d] * size[d] + within[d];
    c->blocks.push_back(make_block(m, *c, id));
    c->blocks.back()->rank = rank;
    c->number_of_warps += c->blocks.back()->warps.size();
  }
  for (auto& block : c->blocks) {
    for (size_t k = 0; k < block->warps.size(); ++k) {
      Warp& w = block->warps[k];
      w.block = block.get(), w.index = k, w.number = block->rank * block->warps.size() + k;
      start(m, w);
    }
    start_warpgroups(*block);
  }
  return c;
}

}  // namespace emu
