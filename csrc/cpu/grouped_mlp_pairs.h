// What bfloat16 paths share: panels of pairs, [k / 2][kGroup][2], which is what a dot product of two wants.
#pragma once

#include "grouped_mlp_layer.h"

namespace capmoe::cpu {
namespace {

// kStepK: what k is padded to.
template <int64_t kStepK>
struct PairPath {
  using Scalar = BFloat16;
  using Panel = BFloat16;
  static constexpr int64_t kPair = 2, kStep = kStepK, kBlockK = 2048, kSumK = kBlockK;
  static constexpr int64_t kPanelBytes = 1024 * 1024;

  static constexpr int64_t kChunk = 1;
  static int64_t chunk(int64_t) { return kChunk; }
  static constexpr int64_t kFew = 0;
  static int64_t columns_at_once(int64_t) { return kSumK; }

  static int64_t weight_scratch(int64_t) { return 2 * kGroup * kStep * sizeof(BFloat16); }

  // The weights in place; what is left of k after whole steps is copied and padded with zeros.
  static WeightRows<BFloat16> prepare(const BFloat16* a, const BFloat16* b, int64_t stride, int64_t half, int64_t k,
                                      int64_t next, int64_t, void* scratch) {
    BFloat16* tail_a = static_cast<BFloat16*>(scratch);
    BFloat16* tail_b = tail_a + kGroup * kStep;
    const int64_t whole = k / kStep * kStep, rest = k - whole;
    if (rest > 0) {
      std::memset(tail_a, 0, 2 * kGroup * kStep * sizeof(BFloat16));
      for (int64_t i = 0; i < half; ++i) {
        std::memcpy(tail_a + i * kStep, a + i * stride + whole, rest * sizeof(BFloat16));
        std::memcpy(tail_b + i * kStep, b + i * stride + whole, rest * sizeof(BFloat16));
      }
    }
    return {a, b, stride, kStep, next, tail_a, tail_b};
  }

  static void store_hidden(const Vec (&values)[2][1], BFloat16* out) {
    const __m512i low = to_bfloat16(values[0][0]), high = to_bfloat16(values[1][0]);
    _mm512_storeu_si512(out, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }

  static void pack(const BFloat16* const rows[kGroup], int64_t, int64_t k, BFloat16* panel) {
    const int64_t padded = round_up(k, kStep);
    for (int64_t i = 0; i < padded; i += 2 * kGroup) {
      const int64_t count = std::min(2 * kGroup, k - i);
      const __mmask32 mask = count >= 32 ? ~0u : (1u << count) - 1;
      __m512i pairs[kGroup];
#pragma GCC unroll 16
      for (int t = 0; t < kGroup; ++t) {
        pairs[t] = rows[t] ? _mm512_maskz_loadu_epi16(mask, rows[t] + i) : _mm512_setzero_si512();
      }
      transpose(pairs);
      const int64_t stored = std::min(2 * kGroup, padded - i) / 2;
#pragma GCC unroll 16
      for (int p = 0; p < kGroup; ++p) {
        if (p < stored) _mm512_storeu_si512(panel + (i + 2 * p) * kGroup, pairs[p]);
      }
    }
  }
};

}  // namespace
}  // namespace capmoe::cpu
