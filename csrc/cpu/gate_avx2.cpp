// The gate with AVX2, FMA and F16C.
#if defined(__x86_64__)

#include "gate.h"
#include "simd_target.h"

CAPMOE_TARGET_BEGIN("avx2,fma,f16c")

#define CAPMOE_LANES 8
#include "gate_rows.h"

namespace capmoe::cpu {

template <class T>
void gate_avx2(const GateArgs<T>& args, const GateBatch& batch, int64_t begin, int64_t end) {
  gate_batches(args, batch, begin, end);
}

template void gate_avx2(const GateArgs<float>&, const GateBatch&, int64_t, int64_t);
template void gate_avx2(const GateArgs<BFloat16>&, const GateBatch&, int64_t, int64_t);
template void gate_avx2(const GateArgs<Half>&, const GateBatch&, int64_t, int64_t);

}  // namespace capmoe::cpu

CAPMOE_TARGET_END

#endif
