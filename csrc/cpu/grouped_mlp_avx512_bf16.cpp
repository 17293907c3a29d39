// The grouped MLP in bfloat16 with AVX-512 BF16: dot products of two, summed in float32.
#if defined(__x86_64__)

#include "simd_target.h"

CAPMOE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")

#define CAPMOE_LANES 16
#include "grouped_mlp_pairs.h"
#include "grouped_mlp_vector.h"

namespace capmoe::cpu {
namespace {

struct PairDot {
  using Weight = BFloat16;
  using Panel = BFloat16;
  using Operand = __m512bh;
  static constexpr int64_t kPair = 2;
  static __m512bh load(const BFloat16* panel, int) { return (__m512bh)_mm512_loadu_si512(panel); }
  static Vec multiply_add(__m512bh tokens, const BFloat16* weights, Vec sum) {
    int32_t pair;
    std::memcpy(&pair, weights, sizeof(pair));
    return (Vec)_mm512_dpbf16_ps((__m512)sum, tokens, (__m512bh)_mm512_set1_epi32(pair));
  }
};

struct Avx512Bf16Path : PairPath<2> {
  static constexpr int kHalf = 6, kGroups = 2;
  struct Session {};

  static void multiply(const WeightRows<BFloat16>& rows, int64_t half, const BFloat16* panel, int64_t stride,
                       int64_t tokens, int64_t k, float* sums_a, float* sums_b, bool accumulate) {
    multiply_halves<PairDot, kHalf, kGroups>(half, tokens, rows, panel, stride, k, sums_a, sums_b, accumulate);
  }
};

}  // namespace

void grouped_mlp_avx512_bf16(const GroupedMlpArgs<BFloat16>& args) { Layer<Avx512Bf16Path>(args).run(); }

}  // namespace capmoe::cpu

CAPMOE_TARGET_END

#endif
