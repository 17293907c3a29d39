// When nobody in a cluster can go on: waits that have a time limit reach it, or the launch hangs and says who waits.
#include <set>

#include "async_proxy.h"
#include "runner.h"

namespace emu {
namespace {

constexpr int kMostExpiries = 64;

std::string reason(Warp& w, int lane) {
  if (w.state[lane] == Lane::at_warpgroup) return waits_in_warpgroup(w);
  if (w.state[lane] == Lane::at_sync) return "waits for other lanes of its warp";
  if (w.state[lane] == Lane::at_barrier) return "waits at barrier " + std::to_string(w.barrier[lane]);
  const uint32_t address = w.wait_for[lane];
  if (address == kClusterBarrier) return "waits at the cluster's barrier";
  std::string text = "waits for the mbarrier at " + std::to_string(address);
  const auto& all = w.block->cluster->mbarriers;
  const auto found = all.find(shared_key(*w.block, address));
  if (found == all.end()) return text + ", which is gone";
  const Mbarrier& m = found->second;
  return text + " (phase " + std::to_string(m.phase) + ": " + std::to_string(m.pending) + " arrivals and " +
         std::to_string(m.bytes) + " bytes are missing)";
}

struct Report {
  Machine& machine;
  std::string text;
  std::set<std::string> told;
  bool at_barrier = false;
  int first = -1;

  void add(Warp& w, int lane) {
    const Lane state = w.state[lane];
    const bool for_group = state == Lane::at_warpgroup;
    const bool parked = for_group || state == Lane::at_sync || state == Lane::waiting;
    const int at = w.pc[lane] - (parked ? 0 : 1);
    const Inst* inst = machine.program.insts + at;
    const bool gathers = state == Lane::at_sync && handler(inst->handler).kind == Kind::barrier;
    at_barrier |= gathers || (for_group && !warpgroup_of(w).wanted);
    if (first < 0) first = lane, machine.running = &w, w.current = inst;
    const std::string of = w.block->cluster->blocks.size() > 1 ? " of rank " + std::to_string(w.block->rank) : "";
    const std::string why = of + " on: " + reason(w, lane) + " {inst " + std::to_string(at) + "}";
    if (text.size() < 300 && told.insert(why).second) text += "; from thread " + std::to_string(w.thread(lane)) + why;
  }
};

}  // namespace

void stuck(Cluster& c) {
  Report report{*c.machine};
  for (auto& block : c.blocks) {
    for (Warp& w : block->warps) {
      for (int lane = 0; lane < kLanes; ++lane) {
        if (has(w.live, lane)) report.add(w, lane);
      }
    }
  }
  throw FaultError{report.at_barrier ? kBarrierDivergence : kHang, report.first, "nobody can go on" + report.text};
}

bool expire(Cluster& c) {
  if (++c.expiries > kMostExpiries) return false;
  bool any = false;
  for (auto& block : c.blocks) {
    for (Warp& w : block->warps) {
      for (int lane = 0; lane < kLanes; ++lane) {
        if (w.state[lane] != Lane::waiting || w.wait_for[lane] == kClusterBarrier) continue;
        w.state[lane] = Lane::run, w.expired |= 1u << lane;
        any = true;
      }
    }
  }
  return any;
}

}  // namespace emu
