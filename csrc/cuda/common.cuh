// What every CUDA file needs: checked launches, integer ceilings, and the order of scores as integers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace capmoe::cuda {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // which would else come back as the next launch's
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Shared memory that a block may have on every architecture from sm_80 on.
constexpr int64_t kCommonSharedBytes = 96 * 1024;

// A kernel's limit of dynamic shared memory is the same for all host threads. So it is never set to what one launch
// needs, which is less than what another thread's may need, but always to the same.
template <class Kernel>
void limit_shared(Kernel* kernel, int64_t bytes, const char* what) {
  const auto limit = static_cast<int>(bytes);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit), what);
}

// Lets a kernel have all that the device can give; refuses a launch that needs more.
template <class Kernel>
void allow_all_shared(Kernel* kernel, int64_t needed, const char* what) {
  int device = 0, most = 0;
  cudaFuncAttributes attributes;
  check_cuda(cudaGetDevice(&device), what);
  check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), what);
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), what);
  const int64_t limit = most - static_cast<int64_t>(attributes.sharedSizeBytes);
  if (needed > limit) {
    throw std::invalid_argument(std::string(what) + " would need " + std::to_string(needed) +
                                " bytes of shared memory for so many experts or columns, this GPU has " +
                                std::to_string(limit));
  }
  limit_shared(kernel, limit, what);
}

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Unsigned integers in the order of the floats; NaN ranks with -inf, and -0 with +0, as in the reference.
__device__ __forceinline__ uint32_t order_key(float score) {
  if (score != score) score = -INFINITY;
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

}  // namespace capmoe::cuda
