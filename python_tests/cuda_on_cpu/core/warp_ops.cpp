// What lanes of a warp do together. The machine has gathered the lanes of the member mask; `mask` is who takes part.
#include <algorithm>

#include "lanes.h"

namespace emu {
namespace {

enum Shuffle { kUp, kDown, kButterfly, kIndex };

// Operands: d, p or -1, a, b, c, member mask. imm: [0] the mode.
void shfl(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  uint32_t source[kLanes], out[kLanes] = {}, valid = 0;
  for (int lane = 0; lane < kLanes; ++lane) source[lane] = get<uint32_t>(w, o[2], lane);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const int b = get<uint32_t>(w, o[3], lane) & 31;
    const uint32_t c = get<uint32_t>(w, o[4], lane);
    const int clamp = c & 31, segment = c >> 8 & 31;
    const int highest = (lane & segment) | (clamp & ~segment), lowest = lane & segment;
    int from = 0;
    bool inside = true;
    switch (i.imm[0]) {
      case kUp:
        from = lane - b, inside = from >= highest;
        break;
      case kDown:
        from = lane + b, inside = from <= highest;
        break;
      case kButterfly:
        from = lane ^ b, inside = from <= highest;
        break;
      default:
        from = lowest | (b & ~segment), inside = from <= highest;
    }
    if (!inside) from = lane;
    if (!has(mask, from)) {
      w.block->machine->warn(w, lane, "shfl reads lane " + std::to_string(from) + ", which takes no part", kShuffle);
    }
    out[lane] = source[from];
    valid |= static_cast<uint32_t>(inside) << lane;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (has(mask, lane) && o[0] >= 0) set<uint32_t>(w, o[0], lane, out[lane]);
  }
  set_predicate(w, o[1], mask, valid);
}

enum Vote { kAll, kAny, kUni, kBallot };

// Operands: d, predicate, member mask. imm: [0] the mode, [1] the predicate is negated.
void vote(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  const uint32_t yes = (predicate(w, o[1]) ^ (i.imm[1] ? ~0u : 0)) & mask;
  if (i.imm[0] == kBallot) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (has(mask, lane)) set<uint32_t>(w, o[0], lane, yes);
    }
    return;
  }
  const bool result = i.imm[0] == kAll ? yes == mask : i.imm[0] == kAny ? yes != 0 : yes == 0 || yes == mask;
  set_predicate(w, o[0], mask, result ? ~0u : 0);
}

// Operands: d, p or -1, a, member mask. imm: [0] all, not any.
template <class T>
void match(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  uint32_t out[kLanes] = {}, same = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    for (int other = 0; other < kLanes; ++other) {
      const bool equal = has(mask, other) && get<T>(w, o[2], other) == get<T>(w, o[2], lane);
      out[lane] |= static_cast<uint32_t>(equal) << other;
    }
    if (i.imm[0] && out[lane] != mask) out[lane] = 0;
    same |= static_cast<uint32_t>(out[lane] != 0) << lane;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (has(mask, lane)) set<uint32_t>(w, o[0], lane, out[lane]);
  }
  set_predicate(w, o[1], mask, same);
}

enum Reduction { kSum, kMin, kMax, kAnd, kOr, kXor };

template <class T>
void redux(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  bool first = true;
  T total = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const T x = get<T>(w, o[1], lane);
    switch (first ? -1 : i.imm[0]) {
      case -1:
        total = x;
        break;
      case kSum:
        total = static_cast<T>(static_cast<uint32_t>(total) + static_cast<uint32_t>(x));
        break;
      case kMin:
        total = std::min(total, x);
        break;
      case kMax:
        total = std::max(total, x);
        break;
      case kAnd:
        total &= x;
        break;
      case kOr:
        total |= x;
        break;
      default:
        total ^= x;
    }
    first = false;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (has(mask, lane)) set<T>(w, o[0], lane, total);
  }
}

// Operands: d or -1, p, member mask.
void elect(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  const int leader = __builtin_ctz(mask);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (has(mask, lane) && o[0] >= 0) set<uint32_t>(w, o[0], lane, leader);
  }
  set_predicate(w, o[1], mask, 1u << leader);
}

void activemask(Warp& w, const Inst& i, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (has(mask, lane)) set<uint32_t>(w, operands(w, i)[0], lane, mask);
  }
}

template <class T>
void clock(Warp& w, const Inst& i, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (has(mask, lane)) set<T>(w, operands(w, i)[0], lane, w.block->machine->counts.warp_instructions);
  }
}

void warp_barrier(Warp& w, const Inst&, uint32_t mask) { synchronise_lanes(w, mask); }

const bool registered = [] {
  add("shfl", shfl, Kind::sync), add("vote", vote, Kind::sync), add("elect", elect, Kind::sync);
  add("match.b32", match<uint32_t>, Kind::sync), add("match.b64", match<uint64_t>, Kind::sync);
  add("redux.u32", redux<uint32_t>, Kind::sync), add("redux.s32", redux<int32_t>, Kind::sync);
  add("clock.b32", clock<uint32_t>), add("clock.b64", clock<uint64_t>);
  add("bar.warp", warp_barrier, Kind::sync), add("activemask", activemask);
  return true;
}();

}  // namespace
}  // namespace emu
