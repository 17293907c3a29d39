// The AVX-512 float32 product for a few tokens, where memory should be the limit: sixteen tokens' lanes would idle, so
// twelve or sixteen weight rows fill them. Each sum still runs over k in order, with the same fused multiply-adds, so
// its bits are those of multiply_block.
#pragma once

#include "grouped_mlp_layer.h"

namespace capmoe::cpu {
namespace {

constexpr int64_t kFewTokens = 8;

// Four columns of k of 12 or 16 rows, each column one vector.
template <int kRows>
__attribute__((always_inline)) inline void load_columns(const float* const* rows, int64_t k, __m512 columns[4]) {
  __m512 r[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_castps128_ps512(_mm_loadu_ps(rows[i] + k));
    r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(rows[i + 4] + k), 1);
    r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(rows[i + 8] + k), 2);
    if constexpr (kRows == 16) r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(rows[i + 12] + k), 3);
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

// Eight columns of 16-bit values: transposed as they are, then widened.
template <int kRows, class W>
__attribute__((always_inline)) inline void load_columns(const W* const* rows, int64_t k, __m512 columns[8]) {
  const auto load = [&](int row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + k)); };
  __m256i r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm256_castsi128_si256(load(i));
    if (i + 8 < kRows) r[i] = _mm256_inserti128_si256(r[i], load(i + 8), 1);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // two rows side by side, then four, then eight
    t[i] = _mm256_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
    t[i + 4] = _mm256_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi32(t[i], t[i + 1]);
    r[i + 1] = _mm256_unpackhi_epi32(t[i], t[i + 1]);
    r[i + 2] = _mm256_unpacklo_epi32(t[i + 2], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi32(t[i + 2], t[i + 3]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    columns[i] = (__m512)widen(_mm256_unpacklo_epi64(r[i], r[i + 2]), W{});
    columns[i + 1] = (__m512)widen(_mm256_unpackhi_epi64(r[i], r[i + 2]), W{});
    columns[i + 2] = (__m512)widen(_mm256_unpacklo_epi64(r[i + 1], r[i + 3]), W{});
    columns[i + 3] = (__m512)widen(_mm256_unpackhi_epi64(r[i + 1], r[i + 3]), W{});
  }
}

// sums [token][row] of kCount tokens. `next`: from these columns to the ones that follow.
template <int kRows, int kCount, class W>
void multiply_columns(const W* const rows[kRows], int64_t next, const float* x, int64_t k, float* sums) {
  constexpr int64_t kAhead = 512 / sizeof(W), kLine = 64 / sizeof(W);
  constexpr int kColumns = sizeof(W) == 2 ? 8 : 4;
  __m512 sum[kCount] = {};
  int64_t i = 0;
  for (; i + kColumns <= k; i += kColumns) {
    if (i % kLine == 0) {  // the hardware's own prefetch loses so many rows' pages
      const int64_t ahead = i + kAhead < k ? i + kAhead : next + i + kAhead - k;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) __builtin_prefetch(rows[r] + ahead);
    }
    __m512 columns[kColumns];
    load_columns<kRows>(rows, i, columns);
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
#pragma GCC unroll 8
      for (int t = 0; t < kCount; ++t) {
        sum[t] = _mm512_fmadd_ps(columns[j], _mm512_set1_ps(x[(i + j) * kGroup + t]), sum[t]);
      }
    }
  }
  for (; i < k; ++i) {
    alignas(64) float column[16] = {};
    for (int r = 0; r < kRows; ++r) column[r] = to_float(rows[r][i]);
#pragma GCC unroll 8
    for (int t = 0; t < kCount; ++t) {
      sum[t] = _mm512_fmadd_ps(_mm512_load_ps(column), _mm512_set1_ps(x[i * kGroup + t]), sum[t]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kCount; ++t) _mm512_storeu_ps(sums + 16 * t, sum[t]);
}

// multiply_block for up to kFewTokens tokens; the sums of lanes without a token are zeros.
template <int kHalf, int kTokens, class W>
void multiply_few(int64_t tokens, const W* a, const W* b, int64_t stride, int64_t next, int64_t half, const float* x,
                  int64_t k, float* sums_a, float* sums_b, bool accumulate) {
  constexpr int kRows = 2 * kHalf;
  static_assert(kRows == 12 || kRows == 16);
  const W* rows[kRows];
  for (int64_t i = 0; i < kHalf; ++i) {  // where half < kHalf, the last row again
    rows[i] = a + std::min(i, half - 1) * stride;
    rows[i + kHalf] = b + std::min(i, half - 1) * stride;
  }
  alignas(64) float block[kFewTokens][16];
  if (tokens == 1) {
    multiply_columns<kRows, 1>(rows, next, x, k, block[0]);
  } else if (tokens == 2) {
    multiply_columns<kRows, 2>(rows, next, x, k, block[0]);
  } else if (tokens <= 4) {
    multiply_columns<kRows, 4>(rows, next, x, k, block[0]);
  } else {
    multiply_columns<kRows, 8>(rows, next, x, k, block[0]);
  }
  // The halves may share a row: read both before writing either.
  for (int64_t t = 0; t < tokens && accumulate; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      block[t][i] += sums_a[i * kTokens + t];
      block[t][i + kHalf] += sums_b[i * kTokens + t];
    }
  }
  for (int64_t i = 0; i < half && !accumulate; ++i) {
    std::fill_n(sums_a + i * kTokens, kGroup, 0.0f);
    std::fill_n(sums_b + i * kTokens, kGroup, 0.0f);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      sums_a[i * kTokens + t] = block[t][i];
      sums_b[i * kTokens + t] = block[t][i + kHalf];
    }
  }
}

}  // namespace
}  // namespace capmoe::cpu
