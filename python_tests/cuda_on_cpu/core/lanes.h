// Element-wise handlers from a function of one lane's values.
#pragma once

#include <utility>

#include "machine.h"

namespace emu {

template <class F, class D, class... A, size_t... I>
void run_lanes(Warp& w, const Inst& i, uint32_t mask, std::index_sequence<I...>) {
  const int32_t* o = operands(w, i);
  if (mask == ~0u) {
    for (int lane = 0; lane < kLanes; ++lane) set<D>(w, o[0], lane, F{}(get<A>(w, o[1 + I], lane)...));
  } else {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (has(mask, lane)) set<D>(w, o[0], lane, F{}(get<A>(w, o[1 + I], lane)...));
    }
  }
}

// d = f(a...), each lane for itself.
template <class D, class... A, class F>
void lanes(const std::string& name, F) {
  add(name, [](Warp& w, const Inst& i, uint32_t mask) {
    run_lanes<F, D, A...>(w, i, mask, std::index_sequence_for<A...>{});
  });
}

// The same for a function that also wants the instruction.
template <class D, class... A, class F>
void lanes_with(const std::string& name, F) {
  add(name, [](Warp& w, const Inst& i, uint32_t mask) {
    const int32_t* o = operands(w, i);
    const auto one = [&]<size_t... I>(int lane, std::index_sequence<I...>) {
      set<D>(w, o[0], lane, F{}(i, get<A>(w, o[1 + I], lane)...));
    };
    for (int lane = 0; lane < kLanes; ++lane) {
      if (has(mask, lane)) one(lane, std::index_sequence_for<A...>{});
    }
  });
}

}  // namespace emu
