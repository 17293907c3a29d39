// Placeholder until the one-launch route arrives: gate and select serve every size.
#include "common.cuh"
#include "kernels.h"

namespace capmoe::cuda {

bool route_fits(const Gate&, const Select&) { return false; }

template <class T>
void route(const T*, const float*, const Gate&, const bool*, const int64_t*, const Select&, const Selection&,
           cudaStream_t) {
  throw std::runtime_error("route: not built");
}

template void route(const float*, const float*, const Gate&, const bool*, const int64_t*, const Select&,
                    const Selection&, cudaStream_t);
template void route(const __nv_bfloat16*, const float*, const Gate&, const bool*, const int64_t*, const Select&,
                    const Selection&, cudaStream_t);
template void route(const __half*, const float*, const Gate&, const bool*, const int64_t*, const Select&,
                    const Selection&, cudaStream_t);

}  // namespace capmoe::cuda
