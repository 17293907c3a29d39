// The gate for more experts than the registers of a warp hold: right, not fast.
#pragma once

#include "kernels.h"

namespace capmoe::cuda {

constexpr int64_t kMaxWideExperts = 4096;

// select counts on these being zero.
__device__ __forceinline__ void clear_counters(const Marks& marks) {
  if (blockIdx.x == 0 && threadIdx.x < kSelectCounters) marks.counters[threadIdx.x] = 0;
}

// As gate(); `marks` is all null where nobody wants them. Throws std::invalid_argument beyond kMaxWideExperts.
template <class T>
void gate_wide(const T* logits, const float* bias, const Gate& config, int32_t* expert_ids, float* weights,
               float* scores, const Marks& marks, cudaStream_t stream);

}  // namespace capmoe::cuda
