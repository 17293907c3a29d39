// Runs the warps of one block: which lanes go together, and who waits for whom.
#pragma once

#include <algorithm>

#include "cluster.h"
#include "lanes.h"
#include "pick.h"

namespace emu {

extern "C" int emu_handler(const char* name);

constexpr int kAligned = -1;  // imm[5] of a sync instruction: every live lane takes part

class Runner {
 public:
  Runner(Machine& machine, Block& block) : m_(machine), block_(block) {}

  // Runs a warp for at most `quantum` instructions; whether it did anything.
  bool run(Warp& w, uint64_t quantum) {
    bool progress = false, same = false;
    uint32_t group = 0;
    m_.running = &w;
    w.yields = false, w.polled = nullptr;
    for (; quantum > 0 && !w.yields; --quantum) {
      if (!same) group = pick_.next(w);
      if (group == 0) break;
      // Lanes that go together, alone, and stay together need not be picked again.
      same = step(w, group) && pick_.alone();
      progress = true;
      if (m_.counts.warp_instructions > static_cast<uint64_t>(m_.launch.max_steps)) hung(group);
    }
    return progress;
  }

  bool live() const {
    return std::any_of(block_.warps.begin(), block_.warps.end(), [](const Warp& w) { return w.live != 0; });
  }

 private:
  const Inst& inst(int pc) const { return m_.program.insts[pc]; }

  void count(const Warp& w, uint32_t mask) {
    if (m_.launch.executed) ++m_.launch.executed[w.current - m_.program.insts];
    ++m_.counts.warp_instructions;
    m_.counts.thread_instructions += __builtin_popcount(mask);
  }

  static void advance(Warp& w, uint32_t lanes) {
    if (lanes == ~0u) {
      for (int lane = 0; lane < kLanes; ++lane) ++w.pc[lane];
    } else {
      for (int lane = 0; lane < kLanes; ++lane) w.pc[lane] += has(lanes, lane);
    }
  }

  // Whether the lanes are still together, and no other may have begun to run.
  bool step(Warp& w, uint32_t group) {
    const int place = w.pc[__builtin_ctz(group)];
    const Inst& i = inst(place);
    const HandlerEntry& entry = entries_[i.handler];
    w.current = &i;
    uint32_t mask = group;
    if (i.guard >= 0) mask &= predicate(w, i.guard) ^ (i.negate ? ~0u : 0);
    const bool gathers = entry.kind == Kind::barrier || entry.kind == Kind::warpgroup;
    if (gathers || entry.kind == Kind::sync) {
      together(w, i, entry, group, mask);
      return false;
    }
    w.active = mask;
    count(w, mask);
    switch (entry.kind) {
      case Kind::branch:
        for (int lane = 0; lane < kLanes; ++lane) {
          if (has(group, lane)) w.pc[lane] = has(mask, lane) ? i.target : w.pc[lane] + 1;
        }
        if (mask && i.target <= place) pick_.went_back(w, group);
        return mask == group || mask == 0;
      case Kind::indirect: {
        const int32_t* o = operands(w, i);  // operand 0: an index into the rest of the targets, or a pc itself
        for (int lane = 0; lane < kLanes; ++lane) {
          if (!has(group, lane)) continue;
          const uint32_t value = get<uint32_t>(w, o[0], lane);
          if (i.count > 1 && has(mask, lane) && value >= static_cast<uint32_t>(i.count - 1)) {
            fault(kInvalid, lane, "brx.idx of %u with %d targets", value, i.count - 1);
          }
          const int to = i.count > 1 ? o[1 + value * has(mask, lane)] : static_cast<int>(value);
          w.pc[lane] = has(mask, lane) ? to : w.pc[lane] + 1;
        }
        return false;
      }
      case Kind::exit:
        advance(w, group);
        leave(w, mask);
        return false;
      default:
        if (mask) m_.watched.instruction.empty() ? entry.run(w, i, mask) : run_watched(w, i, mask);
        advance(w, group);
        if (w.parked) return park(w), false;
        return entry.kind == Kind::plain;
    }
  }

  void leave(Warp& w, uint32_t mask) {
    if (!mask) return;
    w.live &= ~mask;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (has(mask, lane)) w.state[lane] = Lane::exited;
      // Those who waited for a lane that has left look again.
      if (w.state[lane] == Lane::at_sync) w.state[lane] = Lane::run;
    }
    for (auto& entry : block_.barriers) release_if_full(entry.second);
    lanes_left(w, mask);
  }

  // Lanes wait until all that the member mask names are here.
  void together(Warp& w, const Inst& i, const HandlerEntry& entry, uint32_t group, uint32_t mask) {
    advance(w, group & ~mask);
    if (!mask) return count(w, 0);
    const bool aligned = i.imm[5] == kAligned;
    const int32_t* o = operands(w, i);
    const uint32_t members = aligned ? ~0u : get<uint32_t>(w, o[i.imm[5]], __builtin_ctz(mask));
    for (int lane = 0; lane < kLanes && !aligned; ++lane) {
      if (!has(mask, lane)) continue;
      const uint32_t own = get<uint32_t>(w, o[i.imm[5]], lane);
      if (!has(own, lane)) fault(kInvalid, lane, "a lane is not in its own member mask");
      if (own != members) mask &= ~(1u << lane);  // of another sub-warp: its turn comes
    }
    uint32_t here = mask;
    static const int warp_barrier = emu_handler("bar.warp");
    for (int lane = 0; lane < kLanes; ++lane) {
      if (w.state[lane] != Lane::at_sync) continue;
      const Inst& other = inst(w.pc[lane]);
      const bool same = &other == &i || (i.handler == warp_barrier && other.handler == warp_barrier);
      here |= static_cast<uint32_t>(same) << lane;
    }
    const bool free_barrier = entry.kind == Kind::barrier && !aligned;
    if ((members & w.live & ~here) && !free_barrier) {
      for (int lane = 0; lane < kLanes; ++lane) {
        if (has(mask, lane)) w.state[lane] = Lane::at_sync;
      }
      return;
    }
    here &= members;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (has(here, lane)) w.state[lane] = Lane::run;
    }
    w.active = here;
    count(w, here);
    if (entry.kind == Kind::warpgroup) return meet(w, i);
    advance(w, here);
    if (entry.kind == Kind::barrier) return arrive(w, i, here);
    run_watched(w, i, here);
    park(w);
  }

  // Lanes that the instruction has made wait stay where they are.
  static void park(Warp& w) {
    for (uint32_t rest = w.parked; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      w.state[lane] = Lane::waiting, --w.pc[lane];
    }
    w.parked = 0;
  }

  enum Mode { kSync, kArrive, kPopc, kAnd, kOr };

  // Operands: id, threads or -1, and of a reduction the result and the predicate. imm: [0] Mode, [1] negated.
  void arrive(Warp& w, const Inst& i, uint32_t lanes) {
    const int32_t* o = operands(w, i);
    const int first = __builtin_ctz(lanes);
    const int id = get<uint32_t>(w, o[0], first);
    if (id < 0 || id > 15) fault(kInvalid, first, "barrier %d: there are 16", id);
    Barrier& b = block_.barriers[id];
    const uint32_t expected = o[1] >= 0 ? get<uint32_t>(w, o[1], first) : 0;
    if (expected % kLanes) fault(kInvalid, first, "barrier %d for %u threads: not whole warps", id, expected);
    if (b.arrived && b.expected != expected) {
      fault(kInvalid, first, "barrier %d is for %u threads here, for %u elsewhere", id, expected, b.expected);
    }
    b.expected = expected;
    b.arrived += __builtin_popcount(lanes);
    join(b.clock, w.clock), join(b.fenced, w.fenced);
    b.order.join(w.order);
    if (i.imm[0] == kArrive) {
      ++w.clock[w.number];
    } else {
      const uint32_t p = i.imm[0] >= kPopc ? predicate(w, o[3]) ^ (i.imm[1] ? ~0u : 0) : 0;
      b.arrivals.push_back({&w, lanes, &i, p});
      for (int lane = 0; lane < kLanes; ++lane) {
        if (has(lanes, lane)) w.state[lane] = Lane::at_barrier, w.barrier[lane] = id;
      }
    }
    release_if_full(b);
  }

  void release_if_full(Barrier& b) {
    uint32_t expected = b.expected;
    for (const Warp& w : block_.warps) expected += b.expected == 0 ? __builtin_popcount(w.live) : 0;
    if (b.arrived == 0 || b.arrived < expected) return;
    ++m_.counts.barriers;
    block_.cluster->expiries = 0;
    uint32_t yes = 0, all = 0;
    for (const Arrival& a : b.arrivals) {
      yes += __builtin_popcount(a.predicate & a.lanes), all += __builtin_popcount(a.lanes);
    }
    for (const Arrival& a : b.arrivals) finish(a, b, yes, all);
    b = Barrier{};
  }

  void finish(const Arrival& a, const Barrier& b, uint32_t yes, uint32_t all) {
    Warp& w = *a.warp;
    join(w.clock, b.clock), join(w.fenced, b.fenced), see(w, a.lanes, b.clock);
    w.order.join(b.order);
    ++w.clock[w.number];
    synchronise_lanes(w, a.lanes);
    const int32_t* o = operands(w, *a.inst);
    const int64_t mode = a.inst->imm[0];
    if (mode == kAnd || mode == kOr) {
      const bool result = mode == kAnd ? yes == all : yes != 0;
      uint32_t& d = predicate(w, o[2]);
      d = (d & ~a.lanes) | (result ? a.lanes : 0);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!has(a.lanes, lane)) continue;
      if (mode == kPopc) set<uint32_t>(w, o[2], lane, yes);
      w.state[lane] = Lane::run;
    }
  }

  [[noreturn]] void hung(uint32_t group) {
    fault(kHang, __builtin_ctz(group), "still running after %llu warp instructions",
          static_cast<unsigned long long>(m_.counts.warp_instructions));
  }

  Machine& m_;
  Block& block_;
  const HandlerEntry* entries_ = &handler(0);
  Pick pick_{m_};
};

}  // namespace emu
