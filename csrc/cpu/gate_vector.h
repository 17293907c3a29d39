// Vectors of keys: integers in the order of floats. Include inside the target region of one file, with CAPMOE_LANES.
#pragma once

#include <cfloat>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "gate.h"
#include "simd.h"

namespace capmoe::cpu {
namespace {

constexpr int32_t kTaken = INT32_MIN + 0x7fffff;  // the key of kForbidden, and of what is chosen already

#if CAPMOE_LANES == 8
constexpr IntVec kLaneIndex{0, 1, 2, 3, 4, 5, 6, 7};
#elif CAPMOE_LANES == 4
constexpr IntVec kLaneIndex{0, 1, 2, 3};
#endif

#if CAPMOE_LANES == 16

typedef __mmask16 Lanes;

inline Lanes equal(IntVec a, IntVec b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
inline IntVec replace(IntVec v, Lanes where, IntVec by) {
  return (IntVec)_mm512_mask_mov_epi32((__m512i)v, where, (__m512i)by);
}
inline uint64_t bits_of(Lanes lanes) { return lanes; }
// One lane of the i-th vector: of a word's bits, or by its index, whichever is cheaper.
inline Lanes lane_of(uint64_t bits, int i, int32_t) { return static_cast<Lanes>(bits >> (i * kLanes)); }
inline IntVec larger(IntVec a, IntVec b) { return (IntVec)_mm512_max_epi32((__m512i)a, (__m512i)b); }
inline Vec at_least(Vec v, Vec low) { return (Vec)_mm512_max_ps((__m512)v, (__m512)low); }  // low where v is NaN
inline Vec at_most(Vec v, Vec high) { return (Vec)_mm512_min_ps((__m512)v, (__m512)high); }

template <int kStep>
inline IntVec rotated(IntVec v) {
  const auto i = (__m512i)v;
  if (kStep == 8) return (IntVec)_mm512_shuffle_i32x4(i, i, 0x4e);
  if (kStep == 4) return (IntVec)_mm512_shuffle_i32x4(i, i, 0xb1);
  return (IntVec)_mm512_shuffle_epi32(i, kStep == 2 ? _MM_PERM_BADC : _MM_PERM_CDAB);
}

#else

typedef IntVec Lanes;

inline Lanes lane_of(uint64_t, int, int32_t index) { return kLaneIndex == index; }
inline Lanes equal(IntVec a, IntVec b) { return a == b; }
inline IntVec replace(IntVec v, Lanes where, IntVec by) { return where ? by : v; }
inline IntVec larger(IntVec a, IntVec b) { return a > b ? a : b; }
inline Vec at_least(Vec v, Vec low) { return v > low ? v : low; }
inline Vec at_most(Vec v, Vec high) { return v < high ? v : high; }

#if CAPMOE_LANES == 8

inline uint64_t bits_of(Lanes lanes) { return static_cast<uint32_t>(_mm256_movemask_ps((__m256)lanes)); }

template <int kStep>
inline IntVec rotated(IntVec v) {
  const auto i = (__m256i)v;
  if (kStep == 4) return (IntVec)_mm256_permute2x128_si256(i, i, 1);
  return (IntVec)_mm256_shuffle_epi32(i, kStep == 2 ? 0x4e : 0xb1);
}

#else

inline uint64_t bits_of(Lanes lanes) {
#if defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)lanes));
#else
  const IntVec bit = lanes & IntVec{1, 2, 4, 8};
  return static_cast<uint32_t>(bit[0] | bit[1] | bit[2] | bit[3]);
#endif
}

template <int kStep>
inline IntVec rotated(IntVec v) {
  if (kStep == 2) return __builtin_shufflevector(v, v, 2, 3, 0, 1);
  return __builtin_shufflevector(v, v, 1, 0, 3, 2);
}

#endif
#endif

inline IntVec load(const int32_t* from) {
  IntVec v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline void store(int32_t* to, IntVec v) { std::memcpy(to, &v, sizeof(v)); }

// In every lane the largest of all.
inline IntVec largest_lane(IntVec v) {
#if CAPMOE_LANES == 16
  v = larger(v, rotated<8>(v));
#endif
#if CAPMOE_LANES >= 8
  v = larger(v, rotated<4>(v));
#endif
  v = larger(v, rotated<2>(v));
  return larger(v, rotated<1>(v));
}

inline float sum_of_lanes(Vec v) {
#if CAPMOE_LANES == 16
  v += (Vec)rotated<8>((IntVec)v);
#endif
#if CAPMOE_LANES >= 8
  v += (Vec)rotated<4>((IntVec)v);
#endif
  v += (Vec)rotated<2>((IntVec)v);
  v += (Vec)rotated<1>((IntVec)v);
  return v[0];
}

// NaN forbids an expert as -inf does; +inf counts as the largest float.
inline Vec clean(Vec logits) { return at_most(at_least(logits, splat(kForbidden)), splat(FLT_MAX)); }

// -0 equals 0.
inline IntVec keys_of(Vec v) {
  const IntVec bits = (IntVec)(v + 0.0f);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

inline float float_of(int32_t key) { return bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff)); }

}  // namespace
}  // namespace capmoe::cpu
