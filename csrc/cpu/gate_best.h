// The best of a row of keys, without a sort: the largest of all, again and again. Include as gate_vector.h.
#pragma once

#include <algorithm>

#include "gate_vector.h"

namespace capmoe::cpu {
namespace {

// The first lane of a row of kCount vectors that holds `best`; bits: that lane's alone is set.
template <int kCount>
struct First {
  static_assert(kCount * kLanes <= 64);
  uint64_t bits = 0;
  int32_t index;

  inline __attribute__((always_inline)) First(const IntVec* keys, IntVec best) {
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) bits |= bits_of(equal(keys[i], best)) << (i * kLanes);
    index = __builtin_ctzll(bits);
    bits &= ~bits + 1;
  }
};

// The lanes of kTokens rows of kCount vectors from best to worst, ties to the lower index: `wanted` of each. Those that
// a row lacks are garbage; found[t] says how many are not. No branch depends on the data.
template <int kCount, int kTokens>
inline void take_best(const int32_t* const* rows, int64_t wanted, int32_t* const* ids, int64_t* found) {
  IntVec keys[kTokens][kCount];
  int64_t count[kTokens] = {};
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) keys[t][i] = load(rows[t] + i * kLanes);
  }
  for (int64_t round = 0; round < wanted; ++round) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      IntVec best = keys[t][0];
#pragma GCC unroll 16
      for (int i = 1; i < kCount; ++i) best = larger(best, keys[t][i]);
      best = largest_lane(best);
      const First<kCount> first(keys[t], best);
      ids[t][round] = first.index;
      count[t] += best[0] > kTaken;
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) {
        const Lanes lane = lane_of(first.bits, i, first.index - i * kLanes);
        keys[t][i] = replace(keys[t][i], lane, IntVec{} + kTaken);
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) found[t] = count[t];
}

// The largest key of each vector of a row; what pads the last vector of maxima is taken.
inline void find_maxima(const int32_t* row, int64_t vectors, int32_t* maxima) {
  for (int64_t i = 0; i < vectors; ++i) maxima[i] = largest_lane(load(row + i * kLanes))[0];
  std::fill(maxima + vectors, maxima + round_up(vectors, kLanes), kTaken);
}

// The place of `best` in `count` vectors: the first, if they have it.
inline int64_t place_of(const int32_t* from, int64_t count, IntVec best) {
  int64_t place = 0;
  for (int64_t i = count - 1; i >= 0; --i) {
    const uint64_t bits = bits_of(equal(load(from + i * kLanes), best));
    place = bits != 0 ? i * kLanes + __builtin_ctzll(bits | uint64_t{1} << 63) : place;
  }
  return place;
}

inline IntVec largest_of(const int32_t* from, int64_t count) {
  IntVec best = load(from);
  for (int64_t i = 1; i < count; ++i) best = larger(best, load(from + i * kLanes));
  return largest_lane(best);
}

// take_best for rows of any length: a round looks at the vectors' maxima, and at one vector. It changes rows and
// maxima. kCount: how many vectors the maxima fill; 0 where only `count` says so.
template <int kCount, int kTokens>
inline void take_best(int32_t* const* rows, int32_t* const* maxima, int64_t count, int64_t wanted, int32_t* const* ids,
                      int64_t* found) {
  const int64_t n = kCount > 0 ? kCount : count;
  int64_t usable[kTokens] = {};
  for (int64_t round = 0; round < wanted; ++round) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const IntVec best = largest_of(maxima[t], n);
      const int64_t vector = place_of(maxima[t], n, best);
      int32_t* const keys = rows[t] + vector * kLanes;
      const IntVec key = load(keys);
      const uint64_t bits = bits_of(equal(key, best));
      const int32_t lane = __builtin_ctzll(bits);
      ids[t][round] = static_cast<int32_t>(vector) * kLanes + lane;
      usable[t] += best[0] > kTaken;
      const IntVec rest = replace(key, lane_of(bits & (~bits + 1), 0, lane), IntVec{} + kTaken);
      store(keys, rest);
      // A whole vector: a load of what two stores wrote would wait for both.
      int32_t* const near = maxima[t] + vector / kLanes * kLanes;
      const int32_t place = vector % kLanes;
      store(near, replace(load(near), lane_of(uint64_t{1} << place, 0, place), largest_lane(rest)));
    }
  }
  for (int t = 0; t < kTokens; ++t) found[t] = usable[t];
}

}  // namespace
}  // namespace capmoe::cpu
