// Logits to scores and keys, a token at a time. Include as gate_vector.h.
#pragma once

#include <algorithm>
#include <cfloat>

#include "gate_vector.h"

namespace capmoe::cpu {
namespace {

// The last experts of a row, fewer than a vector of them. What is stored here is loaded soon, so it's stored as a
// whole vector: a load of what two stores wrote would wait for both.
template <class T>
inline void load_last(const T* row, int64_t num_experts, int64_t count, float* to) {
#if CAPMOE_LANES == 16
  (void)num_experts;
  const Vec last = load_floats(row, count);
  store(to, (Vec)_mm512_mask_mov_ps(_mm512_set1_ps(kForbidden), first_lanes(count), (__m512)last));
#elif CAPMOE_LANES == 8
  if (num_experts < kLanes) return to_floats(row, to, count);
  float before[kLanes];
  to_floats(row + count - kLanes, before, kLanes);
  const IntVec from = kLaneIndex + static_cast<int32_t>(kLanes - count);
  const Vec moved = (Vec)_mm256_permutevar8x32_ps((__m256)load(before), (__m256i)from);
  store(to, kLaneIndex < static_cast<int32_t>(count) ? moved : splat(kForbidden));
#else
  (void)num_experts;
  to_floats(row, to, count);
#endif
}

template <class T>
inline void load_row(const T* row, int64_t num_experts, float* to) {
  const int64_t last = num_experts % kLanes;
  to_floats(row, to, num_experts - last);
  if (last > 0) load_last(row + num_experts - last, num_experts, last, to + num_experts - last);
}

// Keys of the logits, which lose NaN and inf; returns the largest logit.
inline float rank_logits(float* logits, int64_t count, int32_t* keys) {
  IntVec largest = IntVec{} + kTaken;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec clean_logits = clean(load(logits + i));
    const IntVec key = keys_of(clean_logits);
    store(logits + i, clean_logits);
    store(keys + i, key);
    largest = larger(largest, key);
  }
  return float_of(largest_lane(largest)[0]);
}

// e^x for x <= 0. Results that round to 0 are not computed: processors take hundreds of cycles to find out.
inline Vec power_of(Vec x) {
  const auto counts = x > -104.0f;
  const Vec power = exp(counts ? x : Vec{});
  return counts ? power : Vec{};
}

// Scores before the division by what it returns.
inline float softmax(const float* logits, float largest, int64_t count, float* scores) {
  const Vec most = splat(std::max(largest, -FLT_MAX));  // all forbidden: exp(-inf), not exp(NaN)
  Vec sum{};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec power = power_of(load(logits + i) - most);
    store(scores + i, power);
    sum += power;
  }
  return sum_of_lanes(sum);
}

inline void sigmoid(const float* logits, int64_t count, float* scores) {
  for (int64_t i = 0; i < count; i += kLanes) store(scores + i, 1.0f / (exp(-load(logits + i)) + 1.0f));
}

inline void divide(float* scores, float divisor, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(scores + i, load(scores + i) / divisor);
}

// Keys of score + bias.
inline void rank_biased(const float* logits, const float* scores, const float* bias, int64_t count, int32_t* keys) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec ranked = load(scores + i) + load(bias + i);
    const Vec allowed = load(logits + i) > kForbidden ? ranked : splat(kForbidden);
    store(keys + i, keys_of(at_least(allowed, splat(kForbidden))));
  }
}

}  // namespace
}  // namespace capmoe::cpu
