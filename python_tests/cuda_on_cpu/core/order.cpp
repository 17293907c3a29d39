// What has happened before what: passed from those who release to those who acquire.
#include <algorithm>

#include "cluster.h"

namespace emu {

void join(std::vector<uint32_t>& into, const std::vector<uint32_t>& other) {
  if (into.size() < other.size()) into.resize(other.size());
  for (size_t v = 0; v < other.size(); ++v) into[v] = std::max(into[v], other[v]);
}

void join(Published& into, const Published& other) {
  join(into.clock, other.clock), join(into.fenced, other.fenced);
  for (const auto& [warp, epochs] : other.lanes) {
    auto& mine = into.lanes[warp];
    for (int lane = 0; lane < kLanes; ++lane) mine[lane] = std::max(mine[lane], epochs[lane]);
  }
  into.order.join(other.order);
}

void release(Warp& w, uint32_t lanes, Published& to) {
  join(to.clock, w.clock), join(to.fenced, w.fenced);
  auto& known = to.lanes[w.number];
  ++w.lane_epoch;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(lanes, lane)) continue;
    for (int other = 0; other < kLanes; ++other) known[other] = std::max(known[other], w.known[lane][other]);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (has(lanes, lane)) w.known[lane][lane] = w.lane_epoch;
  }
  to.order.join(w.order);
  ++w.clock[w.number];
}

void see(Warp& w, uint32_t lanes, const std::vector<uint32_t>& clock) {
  const size_t warps = w.block->cluster->warps();
  for (size_t k = warps; k < clock.size(); ++k) {
    if (w.seen.size() <= k - warps) w.seen.resize(k - warps + 1);
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
      uint32_t& mine = w.seen[k - warps][__builtin_ctz(rest)];
      mine = std::max(mine, clock[k]);
    }
  }
}

void acquire(Warp& w, uint32_t lanes, const Published& from) {
  join(w.clock, from.clock), join(w.fenced, from.fenced);
  see(w, lanes, from.clock);
  const auto found = from.lanes.find(w.number);
  for (int lane = 0; lane < kLanes && found != from.lanes.end(); ++lane) {
    if (!has(lanes, lane)) continue;
    for (int other = 0; other < kLanes; ++other) {
      if (other != lane) w.known[lane][other] = std::max(w.known[lane][other], found->second[other]);
    }
  }
  w.order.join(from.order);
}

void release_relaxed(const Warp& w, Published& to) {
  if (w.before_fence) join(to, *w.before_fence);
}

void acquire_relaxed(Warp& w, const Published& from) {
  if (!w.after_relaxed) w.after_relaxed = std::make_shared<Published>();
  join(*w.after_relaxed, from);
}

void fence_arrivals(Warp& w, uint32_t mask) {
  const Cluster& c = *w.block->cluster;
  if (c.mbarriers.empty() && c.blocks.size() == 1) return;
  if (!w.before_fence) w.before_fence = std::make_shared<Published>();
  release(w, mask, *w.before_fence);
  if (w.after_relaxed) acquire(w, mask, *w.after_relaxed);
}

void note_far(Block& b, int who, uint32_t clock) {
  if (b.far_clock.size() <= static_cast<size_t>(who)) b.far_clock.resize(who + 1);
  b.far_clock[who] = std::max(b.far_clock[who], clock);
}

}  // namespace emu
