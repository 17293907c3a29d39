// The AVX-512 float32 product for a few tokens, where memory should be the limit: sixteen tokens' lanes would idle, so
// twelve weight rows fill them. Each sum still runs over k in order, with the same fused multiply-adds, so its bits are
// those of multiply_block.
#pragma once

#include "grouped_mlp_layer.h"

namespace capmoe::cpu {
namespace {

constexpr int64_t kFewTokens = 8;

// Four columns of k of twelve rows, each column one vector.
inline void load_columns(const float* const rows[12], int64_t k, __m512 columns[4]) {
  __m512 r[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_castps128_ps512(_mm_loadu_ps(rows[i] + k));
    r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(rows[i + 4] + k), 1);
    r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(rows[i + 8] + k), 2);
  }
  const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1]));
  const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3]));
  const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1]));
  const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
  columns[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
  columns[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
  columns[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
  columns[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
}

// sums [token][row] of kCount tokens. `next`: from these columns to the ones that follow.
template <int kCount>
void multiply_columns(const float* const rows[12], int64_t next, const float* x, int64_t k, float* sums) {
  constexpr int64_t kAhead = 128;
  __m512 sum[kCount] = {};
  int64_t i = 0;
  for (; i + 4 <= k; i += 4) {
    if (i % 16 == 0) {  // the hardware's own prefetch loses twelve rows' pages
      const int64_t ahead = i + kAhead < k ? i + kAhead : next + i + kAhead - k;
#pragma GCC unroll 12
      for (int r = 0; r < 12; ++r) __builtin_prefetch(rows[r] + ahead);
    }
    __m512 columns[4];
    load_columns(rows, i, columns);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 8
      for (int t = 0; t < kCount; ++t) {
        sum[t] = _mm512_fmadd_ps(columns[j], _mm512_set1_ps(x[(i + j) * kGroup + t]), sum[t]);
      }
    }
  }
  for (; i < k; ++i) {
    alignas(64) float column[16] = {};
    for (int r = 0; r < 12; ++r) column[r] = rows[r][i];
#pragma GCC unroll 8
    for (int t = 0; t < kCount; ++t) {
      sum[t] = _mm512_fmadd_ps(_mm512_load_ps(column), _mm512_set1_ps(x[i * kGroup + t]), sum[t]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kCount; ++t) _mm512_storeu_ps(sums + 16 * t, sum[t]);
}

// multiply_block for up to kFewTokens tokens; the sums of lanes without a token are zeros.
template <int kHalf, int kTokens>
void multiply_few(int64_t tokens, const WeightRows<float>& weights, int64_t half, const float* x, int64_t k,
                  float* sums_a, float* sums_b, bool accumulate) {
  static_assert(kHalf == 6);
  const float* rows[12];
  for (int64_t i = 0; i < 6; ++i) {  // where half < 6, the last row again
    rows[i] = weights.a + std::min(i, half - 1) * weights.stride;
    rows[i + 6] = weights.b + std::min(i, half - 1) * weights.stride;
  }
  alignas(64) float block[kFewTokens][16];
  if (tokens == 1) {
    multiply_columns<1>(rows, weights.next, x, k, block[0]);
  } else if (tokens == 2) {
    multiply_columns<2>(rows, weights.next, x, k, block[0]);
  } else if (tokens <= 4) {
    multiply_columns<4>(rows, weights.next, x, k, block[0]);
  } else {
    multiply_columns<8>(rows, weights.next, x, k, block[0]);
  }
  // The halves may share a row: read both before writing either.
  for (int64_t t = 0; t < tokens && accumulate; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      block[t][i] += sums_a[i * kTokens + t];
      block[t][i + 6] += sums_b[i * kTokens + t];
    }
  }
  for (int64_t i = 0; i < half && !accumulate; ++i) {
    store(sums_a + i * kTokens, Vec{});
    store(sums_b + i * kTokens, Vec{});
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      sums_a[i * kTokens + t] = block[t][i];
      sums_b[i * kTokens + t] = block[t][i + 6];
    }
  }
}

}  // namespace
}  // namespace capmoe::cpu
