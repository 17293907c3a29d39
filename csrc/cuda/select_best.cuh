// One expert over capacity, where nothing but the policy ranks and its keys fit in shared memory: the usual case.
#pragma once

#include "select_threshold.cuh"

namespace capmoe::cuda {

// The keys of all who ask, in token order.
template <class Team, class Problem>
__device__ void list_keys(const Team& team, const Problem& problem, int expert) {
  constexpr int kAtOnce = 4;  // loads in flight
  for (int word = team.rank(); word < problem.words; word += Team::kSize) {
    const SlotWord asks = problem.slots[problem.word(expert, word)];
    uint32_t* to = team.list + asks.before;
    for (uint32_t bits = asks.kept; bits != 0;) {
      uint32_t keys[kAtOnce];
      int count = 0;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (bits == 0) break;
        keys[i] = policy_key(problem, word * 32 + __ffs(bits) - 1, expert);
        bits &= bits - 1;
        ++count;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (i < count) to[i] = keys[i];
      }
      to += count;
    }
  }
  team.sync();
}

// `bits` without all but its lowest `count`.
__device__ __forceinline__ uint32_t lowest(uint32_t bits, int count) {
  for (int surplus = __popc(bits) - max(count, 0); surplus > 0; --surplus) bits ^= 0x80000000u >> __clz(bits);
  return bits;
}

// Rewrites slots, and clears asks: `budget` > 0 of the `asked` stay.
template <class Team, class Problem>
__device__ void keep_best(const Team& team, const Problem& problem, int expert, int budget, int asked) {
  list_keys(team, problem, expert);
  Cut cut{budget, asked};
  KeyPrefix<uint32_t> prefix;
  for (int shift = 24; shift >= 0 && !cut.settled(); shift -= 8) {
    const uint32_t digit = next_digit(team, cut, [&] {
      for (int i = team.rank(); i < asked; i += Team::kSize) {
        const uint32_t key = team.list[i];
        if (prefix.contains(key)) atomicAdd(&team.bins[key >> shift & (kBins - 1)], 1);
      }
    });
    prefix.add(digit, shift);
  }
  int ties = 0, total = 0;
  for (int start = 0; start < problem.words; start += Team::kSize) {
    const int word = start + team.rank();
    const size_t at = problem.word(expert, word);
    uint32_t above = 0, equal = 0;
    if (word < problem.words) {
      const SlotWord asks = problem.slots[at];
      const uint32_t* keys = team.list + asks.before;
      for (uint32_t bits = asks.kept; bits != 0; bits &= bits - 1) {
        const uint32_t key = *keys++ & prefix.mask;
        if (key > prefix.value) above |= bits & -bits;
        if (key == prefix.value) equal |= bits & -bits;
      }
    }
    if (!cut.settled()) {
      const int before = team.exclusive_scan(__popc(equal), &ties);
      equal = lowest(equal, cut.take - before);
    }
    const uint32_t kept = above | equal;
    const int before = team.exclusive_scan(__popc(kept), &total);
    if (word < problem.words) {
      problem.slots[at] = {kept, static_cast<uint32_t>(before)};
      problem.marks.asks[at] = kept;
    }
  }
  team.sync();
}

}  // namespace capmoe::cuda
