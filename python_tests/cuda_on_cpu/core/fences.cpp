// Fences, releases and acquires. A strong write makes known what lay before its release, or before a fence of its warp;
// a strong read learns that at once if it acquires, otherwise at the next fence.
#include "cluster.h"

namespace emu {
namespace {

uint32_t first_warp(const Cluster& c) { return c.index * c.warps() + 1; }

// All that has happened before, this warp's own past included; what it does next is not.
Snapshot snapshot(Warp& w) {
  auto all = std::make_shared<Clocks>(w.order.others);
  const Cluster& c = *w.block->cluster;
  for (int v = 0; v < c.warps(); ++v) {
    if (w.clock[v]) all->raise(first_warp(c) + v, w.clock[v]);
  }
  ++w.clock[w.number];
  return all;
}

void learn(Warp& w, const Snapshot& what) {
  if (!what) return;
  const uint32_t first = first_warp(*w.block->cluster), warps = w.block->cluster->warps();
  for (const auto& [warp, clock] : what->seen()) {
    if (warp >= first && warp < first + warps) w.clock[warp - first] = std::max(w.clock[warp - first], clock);
  }
  w.order.others.join(*what);
}

void observe(Warp& w, int lane, const Release& r, const Use& use) {
  const Reach reach = r.block == w.block->number ? kBlock : kDevice;
  if (use.acquire && (use.wide || reach == kBlock)) {
    learn(w, r.known[reach]);
  } else {
    w.order.see(reach, r.known[reach]);
  }
  const size_t warps = w.block->cluster->warps();
  if (r.clock.size() > warps) {
    if (w.clock.size() < r.clock.size()) w.clock.resize(r.clock.size());
    for (size_t k = warps; k < r.clock.size(); ++k) w.clock[k] = std::max(w.clock[k], r.clock[k]);
    see(w, 1u << lane, r.clock);
  }
  join(w.fenced, r.fenced);
  if (r.warp != warp_number(w)) return;
  for (size_t k = 0; k < r.epochs.size(); ++k) w.known[lane][k] = std::max(w.known[lane][k], r.epochs[k]);
}

void publish(Warp& w, int lane, Release& r, const Use& use) {
  Snapshot mine[] = {w.order.fenced[kBlock], w.order.fenced[kDevice]};
  if (use.release) {
    mine[kBlock] = snapshot(w);
    if (use.wide) mine[kDevice] = mine[kBlock];
  }
  const uint32_t block = w.block->number;
  if (use.atomic && r.block != block) r.known[kBlock] = r.known[kDevice];
  for (const Reach reach : {kBlock, kDevice}) {
    if (!use.atomic) r.known[reach] = nullptr;
    join(r.known[reach], mine[reach]);
  }
  r.block = block, r.warp = warp_number(w);
  if (w.clock.size() > static_cast<size_t>(w.block->cluster->warps())) join(r.clock, w.clock);
  join(r.fenced, w.fenced);
  r.epochs.assign(w.known[lane], w.known[lane] + kLanes);
  w.known[lane][lane] = ++w.lane_epoch;
}

}  // namespace

uint32_t warp_number(const Warp& w) { return first_warp(*w.block->cluster) + w.number; }

// After a strong access. Between lanes of a warp, one that reads what another has written has its past, too.
void synchronise(Warp& w, int lane, std::unordered_map<uint64_t, Release>& releases, uint64_t address, const Use& use) {
  auto found = releases.empty() ? releases.end() : releases.find(address);
  if (found == releases.end()) {
    const bool silent = !use.release && !w.order.fenced[kBlock] && w.active == w.live;
    if (!use.write || silent) return;
    found = releases.try_emplace(address).first;
  }
  if (!use.write || use.atomic) observe(w, lane, found->second, use);
  if (use.write) publish(w, lane, found->second, use);
}

// What has been seen has now happened before, and what has happened is told by the next strong write.
void fence(Warp& w, Reach reach) {
  for (int r = kBlock; r <= reach; ++r) {
    for (const Snapshot& one : w.order.seen[r]) learn(w, one);
    w.order.seen[r].clear();
  }
  const Snapshot all = snapshot(w);
  for (int r = kBlock; r <= reach; ++r) w.order.fenced[r] = all;
}

namespace {

const bool registered = [] {
  add("fence",
      [](Warp& w, const Inst& i, uint32_t mask) { fence(w, static_cast<Reach>(i.imm[0])), fence_arrivals(w, mask); });
  return true;
}();

}  // namespace
}  // namespace emu
