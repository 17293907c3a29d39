// A few rows of logits from global memory to the registers of a warp.
#pragma once

#include <cstdint>

#include "gate_layout.cuh"

namespace capmoe::cuda {

// Copies `count` <= kMost logits to shared memory, 16 bytes a lane where the address allows it.
template <int kMost, class T>
__device__ __forceinline__ void stage_logits(const T* logits, int count, T* staged) {
  constexpr int kVector = 16 / sizeof(T);
  const int lane = threadIdx.x % 32;
  int done = 0;
  if (reinterpret_cast<uintptr_t>(logits) % 16 == 0) {
    const int vectors = count / kVector;
    const uint4* from = reinterpret_cast<const uint4*>(logits) + lane;
    uint4* to = reinterpret_cast<uint4*>(staged) + lane;
#pragma unroll
    for (int i = 0; i < kMost / kVector / 32; ++i) {
      if (lane + 32 * i < vectors) to[32 * i] = __ldg(from + 32 * i);
    }
    done = vectors * kVector;
  }
#pragma unroll 1
  for (int i = done + lane; i < count; i += 32) staged[i] = logits[i];
  __syncwarp();
}

// The lane's logits; -inf where there is no expert.
template <class T, class Layout>
__device__ __forceinline__ void load_logits(const T* logits, int rows, int experts, void* memory,
                                            float (&x)[Layout::kPerLane]) {
  constexpr int kVector = 16 / sizeof(T);
  T* staged = static_cast<T*>(memory);
  stage_logits<Layout::kPlaces>(logits, rows * experts, staged);
  const int first = Layout::first_expert(), count = Layout::row() < rows ? experts - first : 0;
  const T* own = staged + Layout::row() * experts + first;
  if (experts % kVector == 0) {
#pragma unroll
    for (int i = 0; i < Layout::kPerLane; i += kVector) {
      alignas(16) T part[kVector];
      if (i < count) *reinterpret_cast<uint4*>(part) = *reinterpret_cast<const uint4*>(own + i);
#pragma unroll
      for (int j = 0; j < kVector; ++j) x[i + j] = i < count ? to_float(part[j]) : -INFINITY;
    }
  } else {
#pragma unroll
    for (int i = 0; i < Layout::kPerLane; ++i) x[i] = i < count ? to_float(own[i]) : -INFINITY;
  }
  __syncwarp();
}

}  // namespace capmoe::cuda
