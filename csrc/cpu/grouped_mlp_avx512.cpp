// The grouped MLP with AVX-512, sums of float32 products.
#if defined(__x86_64__)

#include "simd_target.h"

CAPMOE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#define CAPMOE_LANES 16
#include "grouped_mlp_float.h"

namespace capmoe::cpu {

template <class T>
void grouped_mlp_avx512(const GroupedMlpArgs<T>& args) {
  Layer<FloatPath<T, 6, 4>>(args).run();  // 24 sums in 32 registers
}

template void grouped_mlp_avx512(const GroupedMlpArgs<float>&);
template void grouped_mlp_avx512(const GroupedMlpArgs<BFloat16>&);
template void grouped_mlp_avx512(const GroupedMlpArgs<Half>&);

}  // namespace capmoe::cpu

CAPMOE_TARGET_END

#endif
