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

// sum += columns [begin, end) of kRows rows, of k columns in all, times kCount tokens. `next`: from these k columns to
// the ones that follow.
template <int kRows, int kCount, class W>
__attribute__((always_inline)) inline void add_columns(const W* const rows[kRows], int64_t begin, int64_t end,
                                                       int64_t k, int64_t next, const float* x, __m512 sum[kCount]) {
  constexpr int64_t kAhead = 512 / sizeof(W), kLine = 64 / sizeof(W);
  constexpr int kColumns = sizeof(W) == 2 ? 8 : 4;
  int64_t i = begin;
  for (; i + kColumns <= end; i += kColumns) {
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
        sum[t] = _mm512_fmadd_ps(columns[j], _mm512_set1_ps(x[(i + j) * kCount + t]), sum[t]);
      }
    }
  }
  for (; i < end; ++i) {
    alignas(64) float column[16] = {};
    for (int r = 0; r < kRows; ++r) column[r] = to_float(rows[r][i]);
#pragma GCC unroll 8
    for (int t = 0; t < kCount; ++t) {
      sum[t] = _mm512_fmadd_ps(_mm512_load_ps(column), _mm512_set1_ps(x[i * kCount + t]), sum[t]);
    }
  }
}

// panel [k, lanes]: columns of the rows, zeros where null.
template <class T>
void pack_few(const T* const rows[kGroup], int64_t lanes, int64_t k, float* panel) {
  if (lanes == 1) return to_floats(rows[0], panel, k);
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t t = 0; t < lanes; ++t) panel[i * lanes + t] = rows[t] ? to_float(rows[t][i]) : 0.0f;
  }
}

// Where the sums of one token are: of the first half's rows, and of the second's, which may share one with the first.
struct FewSums {
  float* at;
  int64_t half, first_b;

  __mmask16 lanes() const { return static_cast<__mmask16>((1 << half) - 1); }

  template <int kHalf>
  __m512 load() const {
    const __m512 a = _mm512_maskz_loadu_ps(lanes(), at);
    return _mm512_mask_loadu_ps(a, static_cast<__mmask16>(lanes() << kHalf), at + first_b - kHalf);
  }

  template <int kHalf>
  void store(__m512 sum) const {
    _mm512_mask_storeu_ps(at, lanes(), sum);
    _mm512_mask_storeu_ps(at + first_b - kHalf, static_cast<__mmask16>(lanes() << kHalf), sum);
  }
};

// sums [token][row] of kCount tokens, of which `tokens` are there: sums of kSumK columns, added one after the other.
template <int kHalf, int kCount, int64_t kSumK, class W>
void multiply_columns(const W* const rows[2 * kHalf], int64_t next, int64_t tokens, const float* x, int64_t k,
                      FewSums sums, bool accumulate) {
  __m512 total[kCount] = {};
#pragma GCC unroll 8
  for (int t = 0; t < kCount; ++t) {
    if (accumulate && t < tokens) total[t] = FewSums{sums.at + t * kGroup, sums.half, sums.first_b}.load<kHalf>();
  }
  for (int64_t begin = 0; begin < k; begin += kSumK) {
    __m512 sum[kCount] = {};
    add_columns<2 * kHalf, kCount>(rows, begin, std::min(begin + kSumK, k), k, next, x, sum);
#pragma GCC unroll 8
    for (int t = 0; t < kCount; ++t) total[t] = accumulate || begin > 0 ? _mm512_add_ps(sum[t], total[t]) : sum[t];
  }
#pragma GCC unroll 8
  for (int t = 0; t < kCount; ++t) {
    if (t < tokens) FewSums{sums.at + t * kGroup, sums.half, sums.first_b}.store<kHalf>(total[t]);
  }
}

// multiply_block for up to kFewTokens tokens and any number of sums of kSumK columns. The sums lie otherwise:
// [token, row], kGroup apart.
template <int kHalf, int64_t kSumK, class W>
void multiply_few(int64_t tokens, const W* a, const W* b, int64_t stride, int64_t next, const float* x, int64_t k,
                  FewSums sums, bool accumulate) {
  static_assert(2 * kHalf == 12 || 2 * kHalf == 16);
  const W* rows[2 * kHalf];
  for (int64_t i = 0; i < kHalf; ++i) {  // where half < kHalf, the last row again
    rows[i] = a + std::min(i, sums.half - 1) * stride;
    rows[i + kHalf] = b + std::min(i, sums.half - 1) * stride;
  }
  if (tokens == 1) {
    multiply_columns<kHalf, 1, kSumK>(rows, next, tokens, x, k, sums, accumulate);
  } else if (tokens == 2) {
    multiply_columns<kHalf, 2, kSumK>(rows, next, tokens, x, k, sums, accumulate);
  } else if (tokens <= 4) {
    multiply_columns<kHalf, 4, kSumK>(rows, next, tokens, x, k, sums, accumulate);
  } else {
    multiply_columns<kHalf, 8, kSumK>(rows, next, tokens, x, k, sums, accumulate);
  }
}

}  // namespace
}  // namespace capmoe::cpu
