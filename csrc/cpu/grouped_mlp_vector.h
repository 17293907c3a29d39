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
// neighbours in k. kStride: from a weight row to the next where known, else 0.
template <class Dot, int kHalf, int V, int kTokens, int64_t kStride>
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
  const int64_t row_stride = kStride != 0 ? kStride : rows.stride;
  const int64_t whole = k / Dot::kPair * Dot::kPair;
  if (kStride != 0 && accumulate) {  // copied rows: tokens are many, and the old sums may be far
#pragma GCC unroll 16
    for (int i = 0; i < kHalf; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) __builtin_prefetch(sums_a + i * kTokens + j * kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) __builtin_prefetch(sums_b + i * kTokens + j * kLanes);
    }
  }
  const char *next_a = rows.next_a, *next_b = rows.next_b;
  const int64_t next_step = rows.next_step;
  int64_t i = 0;
  if constexpr (kStride != 0) {
    for (; i + kGroup <= whole; i += kGroup) {
      __builtin_prefetch(next_a + i * next_step, 0, 2);  // a line is enough for sixteen
      __builtin_prefetch(next_b + i * next_step, 0, 2);
#pragma GCC unroll 16
      for (int64_t j = 0; j < kGroup; j += Dot::kPair)
        step(rows.a + i + j, rows.b + i + j, row_stride, x + (i + j) * kGroup);
    }
  }
  for (; i < whole; i += Dot::kPair) step(rows.a + i, rows.b + i, row_stride, x + i * kGroup);
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
template <class Dot, int kHalf, int V, int kTokens, int64_t kStride, class... Args>
void multiply_vectors(int64_t tokens, const Args&... args) {
  if constexpr (V > 1) {
    if (tokens <= (V - 1) * kLanes) return multiply_vectors<Dot, kHalf, V - 1, kTokens, kStride>(tokens, args...);
  }
  multiply_block<Dot, kHalf, V, kTokens, kStride>(args...);
}

// multiply_block for a `half` known at run time, 1 to kHalf.
template <class Dot, int kHalf, int kGroups, int64_t kStride = 0, class... Args>
void multiply_halves(int64_t half, int64_t tokens, const Args&... args) {
  if constexpr (kHalf > 1) {
    if (half < kHalf) return multiply_halves<Dot, kHalf - 1, kGroups, kStride>(half, tokens, args...);
  }
  multiply_vectors<Dot, kHalf, kGroups * kGroup / kLanes, kGroups * kGroup, kStride>(tokens, args...);
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
  static constexpr int64_t kPair = 1, kStep = 1, kBlockK = 2048;
  static constexpr int64_t kPanelBytes = 8 << 20;
  static constexpr int64_t kSumK = 256;
#if CAPMOE_LANES == 16
  static constexpr int64_t kFew = kFewTokens;
#else
  static constexpr int64_t kFew = 0;
#endif
  struct Session {};

  // Of copied weights. Rows a power of two apart would share the sets of the cache.
  static constexpr int64_t kStride = kSumK + 16;
  // From here on copying float32 weights is cheaper than reading rows that lie far apart again and again.
  static constexpr int64_t kManyTokens = 64;

  // Copied weights lie in the second nearest cache, the tokens that they share in the nearest.
  static constexpr int64_t kChunk = 10;
  static int64_t chunk(int64_t tokens) { return tokens < kManyTokens ? 1 : kChunk; }

  // Of few tokens memory is the limit: nothing shall keep it waiting.
  static int64_t columns_at_once(int64_t tokens) { return tokens <= kFew ? kBlockK : kSumK; }

  static int64_t weight_scratch(int64_t) { return 2 * kHalf * kStride * sizeof(float); }

  struct Rows : WeightRows<float> {
    // Where 16-bit weights stay in place, for multiply_few, which converts as it goes: in place of a and b.
    const T *raw_a = nullptr, *raw_b = nullptr;
  };

  static Rows prepare(const T* a, const T* b, int64_t stride, int64_t half, int64_t k, int64_t next, int64_t tokens,
                      void* scratch) {
    if constexpr (std::is_same_v<T, float>) {
      if (tokens < kManyTokens) return {{a, b, stride, kStep, next, nullptr, nullptr}};
    }
#if CAPMOE_LANES == 16
    if (tokens <= kFew) return {{nullptr, nullptr, stride, kStep, next, nullptr, nullptr}, a, b};
#endif
    float* floats_a = static_cast<float*>(scratch);
    float* floats_b = floats_a + kHalf * kStride;
    for (int64_t i = 0; i < half; ++i) to_floats(a + i * stride, floats_a + i * kStride, k);
    for (int64_t i = 0; i < half; ++i) to_floats(b + i * stride, floats_b + i * kStride, k);
    // A row of each half per group of tokens; where there are fewer groups the others are asked for here.
    for (int64_t i = tokens <= kGroup ? 0 : ceil_div(tokens, kGroups * kGroup); i < half; ++i) {
      for (int64_t j = 0; j < k; j += 64 / sizeof(T)) {
        __builtin_prefetch(a + i * stride + next + j, 0, 2);
        __builtin_prefetch(b + i * stride + next + j, 0, 2);
      }
    }
    constexpr int64_t kBytes = sizeof(T);
    const auto *next_a = reinterpret_cast<const char*>(a + next), *next_b = reinterpret_cast<const char*>(b + next);
    return {{floats_a, floats_b, kStride, kStep, 0, nullptr, nullptr, next_a, next_b, stride * kBytes, kBytes, half}};
  }

  static void multiply(const Rows& rows, int64_t half, const float* panel, int64_t stride, int64_t tokens, int64_t k,
                       float* sums_a, float* sums_b, bool accumulate) {
#if CAPMOE_LANES == 16
    const FewSums few{sums_a, half, (sums_b - sums_a) / (kGroups * kGroup)};
    if (rows.raw_a != nullptr) {
      return multiply_few<kHalf, kSumK>(tokens, rows.raw_a, rows.raw_b, rows.stride, rows.next, panel, k, few,
                                        accumulate);
    }
    if (tokens <= kFew) {
      return multiply_few<kHalf, kSumK>(tokens, rows.a, rows.b, rows.stride, rows.next, panel, k, few, accumulate);
    }
#endif
    if (rows.stride == kStride) {
      multiply_halves<FloatDot, kHalf, kGroups, kStride>(half, tokens, rows, panel, stride, k, sums_a, sums_b,
                                                         accumulate);
    } else {
      multiply_halves<FloatDot, kHalf, kGroups>(half, tokens, rows, panel, stride, k, sums_a, sums_b, accumulate);
    }
  }

  static void store_hidden(const Vec (&values)[1][kGroup / kLanes], float* out) {
    for (int part = 0; part < kGroup / kLanes; ++part) store(out + part * kLanes, values[0][part]);
  }

  static void pack(const T* const rows[kGroup], [[maybe_unused]] int64_t lanes, int64_t k, float* panel) {
#if CAPMOE_LANES == 16
    if (lanes < kGroup) return pack_few(rows, lanes, k, panel);
#endif
    for (int64_t i = 0; i < k; i += kGroup) {
      const int64_t count = std::min(kGroup, k - i);
#if CAPMOE_LANES == 16
      if (count == kGroup) {
        transpose_rows(rows, i, panel + i * kGroup);
        continue;
      }
#endif
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
