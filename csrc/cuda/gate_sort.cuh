// A candidate (an expert and what ranks it), and the network that sorts a lane's candidates in registers.
//
// An entry comes before another where its key is larger, or the keys are equal and its expert is lower.
#pragma once

#include <cstdint>
#include <type_traits>

#include "gate_score.cuh"

namespace capmoe::cuda {

// The key above the expert, which is inverted: the better entry is the larger integer.
struct WideEntry {
  uint64_t bits;
  static constexpr bool kUnique = false;  // not by key alone

  static __device__ __forceinline__ float clean(float logit) { return clean_logit(logit); }
  static __device__ __forceinline__ WideEntry of(float rank_by, int expert) {
    return {static_cast<uint64_t>(to_key(rank_by)) << 32 | ~static_cast<uint32_t>(expert)};
  }
  static __device__ __forceinline__ WideEntry none() { return {0}; }
  __device__ __forceinline__ uint32_t key() const { return static_cast<uint32_t>(bits >> 32); }
  __device__ __forceinline__ int expert() const { return static_cast<int>(~static_cast<uint32_t>(bits)); }
  __device__ __forceinline__ float rank() const { return from_key(key()); }
};

// The same for a sorter that compares numbers: cheaper where there are few.
struct FloatEntry {
  float rank_by;
  int place;
  static constexpr bool kUnique = false;

  // As clean_logit(), but for -0, which compares as +0 does.
  static __device__ __forceinline__ float clean(float logit) { return fminf(fmaxf(logit, -INFINITY), FLT_MAX); }
  static __device__ __forceinline__ FloatEntry of(float rank_by, int expert) { return {rank_by, expert}; }
  __device__ __forceinline__ int expert() const { return place; }
  __device__ __forceinline__ float rank() const { return rank_by; }
};

// A 16-bit logit leaves the 13 lowest bits of its float free: the expert goes there, and one integer says all.
struct PackedEntry {
  uint32_t bits;
  static constexpr bool kUnique = true;
  static constexpr uint32_t kExpertBits = 0x1fffu;

  // rank() finds +inf.
  static __device__ __forceinline__ float clean(float logit) { return forbid_nan(logit); }
  static __device__ __forceinline__ PackedEntry of(float rank_by, int expert) {
    return {(to_key(rank_by) & ~kExpertBits) | (kExpertBits - static_cast<uint32_t>(expert))};
  }
  static __device__ __forceinline__ PackedEntry none() { return {0}; }
  __device__ __forceinline__ uint32_t key() const { return bits; }
  __device__ __forceinline__ int expert() const { return static_cast<int>(kExpertBits - (bits & kExpertBits)); }
  __device__ __forceinline__ float rank() const {
    return fminf(__uint_as_float(__float_as_uint(from_key(bits)) & ~kExpertBits), FLT_MAX);
  }
};

template <class Entry>
__device__ __forceinline__ bool is_allowed(Entry entry) {
  return entry.key() > kForbiddenKey;
}

__device__ __forceinline__ bool is_allowed(FloatEntry entry) { return entry.rank_by > -INFINITY; }

// Puts the better of two entries first. kInOrder: every expert that `a` may be is lower than every one of `b`.
template <bool kInOrder>
__device__ __forceinline__ void exchange(WideEntry& a, WideEntry& b) {
  const bool swap = kInOrder ? b.key() > a.key() : b.bits > a.bits;
  const WideEntry first = swap ? b : a, second = swap ? a : b;
  a = first;
  b = second;
}

template <bool kInOrder>
__device__ __forceinline__ void exchange(FloatEntry& a, FloatEntry& b) {
  const bool tied_first = !kInOrder && b.rank_by == a.rank_by && b.place < a.place;
  const bool swap = b.rank_by > a.rank_by || tied_first;
  // Numbers, not structures, so that there is no branch.
  const float best = swap ? b.rank_by : a.rank_by, other = swap ? a.rank_by : b.rank_by;
  const int best_place = swap ? b.place : a.place, other_place = swap ? a.place : b.place;
  a = {best, best_place};
  b = {other, other_place};
}

template <bool kInOrder>
__device__ __forceinline__ void exchange(PackedEntry& a, PackedEntry& b) {
  const uint32_t first = max(a.bits, b.bits), second = min(a.bits, b.bits);
  a.bits = first;
  b.bits = second;
}

// Batcher's odd-even merge of entries kBegin, kBegin + kStep, ... of the kCount from kBegin on, whose two halves are
// sorted.
template <int kBegin, int kCount, int kStep, class Entry, int kSize>
__device__ __forceinline__ void merge(Entry (&entries)[kSize]) {
  if constexpr (2 * kStep < kCount) {
    merge<kBegin, kCount, 2 * kStep>(entries);
    merge<kBegin + kStep, kCount, 2 * kStep>(entries);
#pragma unroll
    for (int i = kBegin + kStep; i + kStep < kBegin + kCount; i += 2 * kStep) {
      exchange<false>(entries[i], entries[i + kStep]);
    }
  } else {
    exchange<true>(entries[kBegin], entries[kBegin + kStep]);
  }
}

// Sorts kCount entries from kBegin on, which come in the order of their experts, best first.
template <int kBegin, int kCount, class Entry, int kSize>
__device__ __forceinline__ void sort(Entry (&entries)[kSize]) {
  if constexpr (kCount > 1) {
    sort<kBegin, kCount / 2>(entries);
    sort<kBegin + kCount / 2, kCount / 2>(entries);
    merge<kBegin, kCount, 1>(entries);
  }
}

}  // namespace capmoe::cuda
