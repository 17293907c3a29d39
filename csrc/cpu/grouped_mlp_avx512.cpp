// The grouped MLP with AVX-512, sums of float32 products.
#if defined(__x86_64__)

#include "simd_target.h"

CAPMOE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#define CAPMOE_LANES 16
#include "grouped_mlp_vector.h"

namespace capmoe::cpu {

template <class T>
void grouped_mlp_avx512(const GroupedMlpArgs<T>& args) {
  if constexpr (sizeof(T) == 2) {
    const int32_t* counts = args.tokens_per_expert;
    const bool few = *std::max_element(counts, counts + args.config.num_experts) <= kFewTokens;
    // Sixteen rows keep the shuffles of 16-bit weights busy; of float32 they are only more places in memory at once.
    if (few) return Layer<FloatPath<T, 8, 1>>(args).run();
  }
  Layer<FloatPath<T, 6, 2>>(args).run();  // 24 sums in 32 registers
}

template void grouped_mlp_avx512(const GroupedMlpArgs<float>&);
template void grouped_mlp_avx512(const GroupedMlpArgs<BFloat16>&);
template void grouped_mlp_avx512(const GroupedMlpArgs<Half>&);

}  // namespace capmoe::cpu

CAPMOE_TARGET_END

#endif
