// The grouped MLP with AVX2, FMA and F16C.
#if defined(__x86_64__)

#include "simd_target.h"

CAPMOE_TARGET_BEGIN("avx2,fma,f16c")

#define CAPMOE_LANES 8
#include "grouped_mlp_float.h"

namespace capmoe::cpu {

template <class T>
void grouped_mlp_avx2(const GroupedMlpArgs<T>& args) {
  Layer<FloatPath<T, 6, 1>>(args).run();  // 12 sums in 16 registers
}

template void grouped_mlp_avx2(const GroupedMlpArgs<float>&);
template void grouped_mlp_avx2(const GroupedMlpArgs<BFloat16>&);
template void grouped_mlp_avx2(const GroupedMlpArgs<Half>&);

}  // namespace capmoe::cpu

CAPMOE_TARGET_END

#endif
