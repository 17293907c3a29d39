// The grouped MLP with vectors: a Path (grouped_mlp_layer.h) for float32 sums of float32 products.
//
// 16-bit weights are converted, a block at a time, into a scratch that stays in the cache. Include inside the target
// region of one file, after defining CAPMOE_LANES.
#pragma once

#include <type_traits>

#include "grouped_mlp_layer.h"
#if CAPMOE_LANES == 16
#include "grouped_mlp_few.h"
#endif

namespace capmoe::cpu {
namespace {

// sums [half, kTokens] of each half-block, V vectors of tokens wide, += weights * panel. Dot multiplies kPair
// neighbours in k.
template <class Dot, int kHalf, int V, int kTokens>
void multiply_block(const WeightRows<typename Dot::Weight>& rows, const typename Dot::Panel* x, int64_t group_stride,
                    int64_t k, float* sums_a, float* sums_b, bool accumulate) {
  constexpr int kParts = kGroup / kLanes;  // vectors of a group
  Vec a[kHalf][V] = {}, b[kHalf][V] = {};
  const auto step = [&](const typename Dot::Weight* wa, const typename Dot::Weight* wb, int64_t stride,
                        const typename Dot::Panel* panel) __attribute__((always_inline)) {
    typename Dot::Operand tokens[V];
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) tokens[j] = Dot::load(panel + j / kParts * group_stride, j % kParts);
#pragma GCC unroll 16
    for (int i = 0; i < kHalf; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) a[i][j] = Dot::multiply_add(tokens[j], wa + i * stride, a[i][j]);
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) b[i][j] = Dot::multiply_add(tokens[j], wb + i * stride, b[i][j]);
    }
  };
  const int64_t whole = k / Dot::kPair * Dot::kPair;
  for (int64_t i = 0; i < whole; i += Dot::kPair) step(rows.a + i, rows.b + i, rows.stride, x + i * kGroup);
  if (whole < k) step(rows.tail_a, rows.tail_b, Dot::kPair, x + whole * kGroup);
  // A block of k is summed by itself and then added, which rounds less than one long sum. All old sums are read
  // first: the halves may share a row.
  if (accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < kHalf; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) a[i][j] += load(sums_a + i * kTokens + j * kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) b[i][j] += load(sums_b + i * kTokens + j * kLanes);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kHalf; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) store(sums_a + i * kTokens + j * kLanes, a[i][j]);
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) store(sums_b + i * kTokens + j * kLanes, b[i][j]);
  }
}

// multiply_block with V vectors at most, as many as `tokens` need.
template <class Dot, int kHalf, int V, int kTokens, class... Args>
void multiply_vectors(int64_t tokens, Args... args) {
  if constexpr (V > 1) {
    if (tokens <= (V - 1) * kLanes) return multiply_vectors<Dot, kHalf, V - 1, kTokens>(tokens, args...);
  }
  multiply_block<Dot, kHalf, V, kTokens>(args...);
}

// multiply_block for a `half` known at run time, 1 to kHalf.
template <class Dot, int kHalf, int kGroups, class... Args>
void multiply_halves(int64_t half, int64_t tokens, Args... args) {
  if constexpr (kHalf > 1) {
    if (half < kHalf) return multiply_halves<Dot, kHalf - 1, kGroups>(half, tokens, args...);
  }
  multiply_vectors<Dot, kHalf, kGroups * kGroup / kLanes, kGroups * kGroup>(tokens, args...);
}

struct FloatDot {
  using Weight = float;
  using Panel = float;
  using Operand = Vec;
  static constexpr int64_t kPair = 1;
  static Vec load(const float* panel, int part) { return cpu::load(panel + part * kLanes); }
  static Vec multiply_add(Vec tokens, const float* weight, Vec sum) { return sum + tokens * *weight; }
};

template <class T, int kHalfRows, int kTokenGroups>
struct FloatPath {
  using Scalar = T;
  using Panel = float;
  static constexpr int kHalf = kHalfRows, kGroups = kTokenGroups;
  static constexpr int64_t kPair = 1, kStep = 1, kBlockK = 1024;
  // Weights that must be converted are worth more tokens.
  static constexpr int64_t kPanelBytes = (std::is_same_v<T, float> ? 256 : 1024) * 1024;
  static constexpr int64_t kSumK = 256;  // divides kBlockK
  struct Session {};

  static constexpr int64_t kPadding = 16;  // rows a power of two apart would share the sets of the cache

  static int64_t weight_scratch(int64_t k) {
    return std::is_same_v<T, float> ? 0 : 2 * kHalf * (k + kPadding) * sizeof(float);
  }

  // One row, asking for the one that will follow it.
  static void convert(const T* row, float* floats, int64_t k, int64_t next) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t i = 0; i < k; i += kLine) {
      __builtin_prefetch(row + next + i, 0, 2);
      to_floats(row + i, floats + i, std::min(kLine, k - i));
    }
  }

  static WeightRows<float> prepare(const T* a, const T* b, int64_t stride, int64_t half, int64_t k, int64_t next,
                                   int64_t, const Buffer& scratch) {
    if constexpr (std::is_same_v<T, float>) {
      return {a, b, stride, kStep, next, nullptr, nullptr};
    } else {
      float* floats_a = scratch.as<float>();
      float* floats_b = floats_a + half * (k + kPadding);
      for (int64_t i = 0; i < half; ++i) convert(a + i * stride, floats_a + i * (k + kPadding), k, next);
      for (int64_t i = 0; i < half; ++i) convert(b + i * stride, floats_b + i * (k + kPadding), k, next);
      return {floats_a, floats_b, k + kPadding, kStep, 0, nullptr, nullptr};
    }
  }

  static void multiply(const WeightRows<float>& rows, int64_t half, const float* panel, int64_t stride, int64_t tokens,
                       int64_t k, float* sums_a, float* sums_b, bool accumulate) {
    for (int64_t k0 = 0; k0 < k; k0 += kSumK) {
      const WeightRows<float> block{rows.a + k0, rows.b + k0, rows.stride, kStep, rows.next, nullptr, nullptr};
      const float* x = panel + k0 * kGroup;
      const int64_t count = std::min(kSumK, k - k0);
#if CAPMOE_LANES == 16
      if (tokens <= kFewTokens) {
        multiply_few<kHalf, kGroups * kGroup>(tokens, block, half, x, count, sums_a, sums_b, accumulate || k0 > 0);
        continue;
      }
#endif
      multiply_halves<FloatDot, kHalf, kGroups>(half, tokens, block, x, stride, count, sums_a, sums_b,
                                                accumulate || k0 > 0);
    }
  }

  static void store_hidden(const Vec (&values)[1][kGroup / kLanes], float* out) {
    for (int part = 0; part < kGroup / kLanes; ++part) store(out + part * kLanes, values[0][part]);
  }

  static void pack(const T* const rows[kGroup], int64_t k, float* panel) {
    for (int64_t i = 0; i < k; i += kGroup) {
      const int64_t count = std::min(kGroup, k - i);
      alignas(64) float tile[kGroup * kGroup] = {}, turned[kGroup * kGroup];
      for (int64_t t = 0; t < kGroup; ++t) {
        if (rows[t]) to_floats(rows[t] + i, tile + t * kGroup, count);
      }
      transpose(tile, kGroup, kGroup, turned);
      std::memcpy(panel + i * kGroup, turned, count * kGroup * sizeof(float));
    }
  }
};

}  // namespace
}  // namespace capmoe::cpu
