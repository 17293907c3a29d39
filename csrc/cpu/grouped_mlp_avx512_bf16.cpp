// The grouped MLP in bfloat16 with AVX-512 BF16: dot products of two, summed in float32.
#if defined(__x86_64__)

#include "simd_target.h"

CAPMOE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")

#define CAPMOE_LANES 16
#include "grouped_mlp_pairs.h"

namespace capmoe::cpu {
namespace {

struct Avx512Bf16Path : PairPath {
  static constexpr int64_t kRows = 6, kBlocks = 4, kBlockK = 512, kStep = 2 * kBlock;
  static constexpr int64_t kColumns = kBlocks * kBlock;
  struct Session {};

  static int64_t row_size(int64_t columns) { return columns == 0 ? 0 : kBlockK; }
  static int64_t place(int64_t row, int64_t column, int64_t) { return row * kBlockK + column; }

  static void copy_row(const BFloat16* from, int64_t real, int64_t count, int64_t row, BFloat16* tile) {
    BFloat16* to = tile + row * kBlockK;
    std::memcpy(to, from, real * sizeof(BFloat16));
    std::memset(to + real, 0, (count - real) * sizeof(BFloat16));
  }

  template <int kTokens, int kCount>
  static void multiply_block(Panel<BFloat16> weights, const BFloat16* tokens, int64_t k, float* sums, bool accumulate,
                             const Ahead& ahead) {
    __m512 sum[kTokens][kCount];
    const auto at = [&](int r, int b) { return sums + r * kColumns + b * kBlock; };
#pragma GCC unroll 8
    for (int r = 0; r < kTokens; ++r) {
#pragma GCC unroll 4
      for (int b = 0; b < kCount; ++b) sum[r][b] = accumulate ? _mm512_loadu_ps(at(r, b)) : _mm512_setzero_ps();
    }
    for (int64_t i = 0; i < k; i += kStep) {
      ahead.ask<kCount>(i / kStep);
#pragma GCC unroll 4
      for (int64_t j = i; j < i + kStep; j += 2) {
        __m512bh pairs[kCount];
#pragma GCC unroll 4
        for (int b = 0; b < kCount; ++b) {
          pairs[b] = (__m512bh)_mm512_loadu_si512(weights.data + b * weights.stride + j * kBlock);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kTokens; ++r) {
          int32_t pair;
          std::memcpy(&pair, tokens + r * kBlockK + j, sizeof(pair));
          const auto token = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
          for (int b = 0; b < kCount; ++b) sum[r][b] = _mm512_dpbf16_ps(sum[r][b], token, pairs[b]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTokens; ++r) {
#pragma GCC unroll 4
      for (int b = 0; b < kCount; ++b) _mm512_storeu_ps(at(r, b), sum[r][b]);
    }
  }

  template <int kTokens, int kCount, class... Args>
  static void multiply_rows(int64_t rows, const Args&... args) {
    if constexpr (kTokens > 1) {
      if (rows < kTokens) return multiply_rows<kTokens - 1, kCount>(rows, args...);
    }
    multiply_block<kTokens, kCount>(args...);
  }

  template <class Meanwhile>
  static void multiply(Panel<BFloat16> weights, int64_t blocks, const BFloat16* tokens, int64_t rows, int64_t k,
                       float* sums, bool accumulate, const Ahead& ahead, const Meanwhile& meanwhile) {
    meanwhile(0, kRows);
    if (blocks == kBlocks) return multiply_rows<kRows, kBlocks>(rows, weights, tokens, k, sums, accumulate, ahead);
    for (int64_t b = 0; b < blocks; ++b) {
      const Panel<BFloat16> here{weights.data + b * weights.stride, weights.stride};
      multiply_rows<kRows, 1>(rows, here, tokens, k, sums + b * kBlock, accumulate, ahead.from_block(b));
    }
  }
};

}  // namespace

void grouped_mlp_avx512_bf16(const GroupedMlpArgs<BFloat16>& args) { Layer<Avx512Bf16Path>(args).run(); }

}  // namespace capmoe::cpu

CAPMOE_TARGET_END

#endif
