// Element-wise handlers from a function of one lane's values.
#pragma once

#include <utility>

#include "machine.h"

namespace emu {

// A register of all lanes, side by side so that the compiler can take several at once.
template <class T>
struct Row {
  T lane[kLanes];

  Row() = default;
  Row(const Warp& w, int32_t offset) {
    if constexpr (sizeof(T) >= 4) {
      std::memcpy(lane, w.registers + offset, sizeof(lane));
    } else {
      for (int i = 0; i < kLanes; ++i) lane[i] = get<T>(w, offset, i);
    }
  }
  void store(Warp& w, int32_t offset) const {
    if constexpr (sizeof(T) >= 4) {
      std::memcpy(w.registers + offset, lane, sizeof(lane));
    } else {
      for (int i = 0; i < kLanes; ++i) set<T>(w, offset, i, lane[i]);
    }
  }
};

template <class D, class F, class... A>
void store_rows(Warp& w, int32_t offset, F f, const Row<A>&... rows) {
  Row<D> out;
  for (int lane = 0; lane < kLanes; ++lane) out.lane[lane] = f(rows.lane[lane]...);
  out.store(w, offset);
}

// d = f(a...) for the lanes of the mask.
template <class D, class... A, class F, size_t... I>
void run_lanes(Warp& w, const Inst& i, uint32_t mask, F f, std::index_sequence<I...>) {
  const int32_t* o = operands(w, i);
  if (mask == ~0u) return store_rows<D>(w, o[0], f, Row<A>(w, o[1 + I])...);
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    set<D>(w, o[0], lane, f(get<A>(w, o[1 + I], lane)...));
  }
}

// d = f(a...), each lane for itself.
template <class D, class... A, class F>
void lanes(const std::string& name, F) {
  add(name, [](Warp& w, const Inst& i, uint32_t mask) {
    run_lanes<D, A...>(w, i, mask, [](A... a) -> D { return F{}(a...); }, std::index_sequence_for<A...>{});
  });
}

// The same for a function that also wants the instruction.
template <class D, class... A, class F>
void lanes_with(const std::string& name, F) {
  add(name, [](Warp& w, const Inst& i, uint32_t mask) {
    run_lanes<D, A...>(w, i, mask, [&i](A... a) -> D { return F{}(i, a...); }, std::index_sequence_for<A...>{});
  });
}

// A bit per lane, of 32 bytes that are 0 or 1.
inline uint32_t mask_of(const uint8_t* flags) {
  uint32_t mask = 0;
  for (int part = 0; part < 4; ++part) {
    uint64_t eight;
    std::memcpy(&eight, flags + 8 * part, 8);
    mask |= static_cast<uint32_t>(eight * 0x0102040810204080ull >> 56) << (8 * part);
  }
  return mask;
}

}  // namespace emu
