// Which lanes of a warp go on together.
#pragma once

#include <algorithm>

#include "lanes.h"

namespace emu {

// Those with the lowest pc, so that lanes which have diverged meet again behind a branch or a loop; a seed lets others
// go first now and then. Lanes that go round and round a loop, perhaps waiting for others of their warp, let these go
// on for a while: every lane makes progress.
class Pick {
 public:
  explicit Pick(Machine& machine) : m_(machine) {}

  uint32_t next(Warp& w) {
    int lowest = INT32_MAX, highest = -1;
    uint8_t runs[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      runs[lane] = w.state[lane] == Lane::run;
      lowest = std::min(lowest, runs[lane] ? w.pc[lane] : INT32_MAX);
      highest = std::max(highest, runs[lane] ? w.pc[lane] : -1);
    }
    alone_ = lowest >= highest;
    if (alone_) return mask_of(runs);
    const int pc = chosen(w, mask_of(runs), lowest);
    for (int lane = 0; lane < kLanes; ++lane) runs[lane] &= w.pc[lane] == pc;
    return mask_of(runs);
  }

  // The group picked last is all that runs.
  bool alone() const { return alone_; }

  // A group that is not alone has taken a branch backwards.
  void went_back(Warp& w, uint32_t group) {
    if (alone_ || w.turns_for_others > 0 || ++w.times_back < kPatience) return;
    w.times_back = 0, w.turns_for_others = kTurns, w.waiting = group;
  }

 private:
  static constexpr int kPatience = 256, kTurns = 64;

  int chosen(Warp& w, uint32_t running, int lowest) {
    if (m_.launch.seed != 0 && m_.random() % 8 == 0) {
      const int lane = m_.random() % kLanes;
      if (has(running, lane)) return w.pc[lane];
    }
    if (w.turns_for_others > 0) {
      --w.turns_for_others;
      int other = INT32_MAX;
      for (uint32_t rest = running & ~w.waiting; rest; rest &= rest - 1) {
        other = std::min(other, w.pc[__builtin_ctz(rest)]);
      }
      if (other != INT32_MAX) return other;
    }
    return lowest;
  }

  Machine& m_;
  bool alone_ = false;
};

}  // namespace emu
