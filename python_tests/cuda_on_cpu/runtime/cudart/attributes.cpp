// What a kernel is allowed and what it takes. Registers are those that ptxas gives it.
#include <cuda_occupancy.h>

#include "standin.h"

namespace standin {
namespace {

cudaError_t no_kernel(const char* call) {
  return problem(cudaErrorInvalidDeviceFunction, "BadLaunch", std::string(call) + " of a function that is no kernel");
}

cudaError_t facts_of(const Kernel& kernel, bool with_registers, KernelFacts* out) {
  return static_cast<cudaError_t>(host->facts(kernel.module, kernel.name.c_str(), with_registers, out));
}

}  // namespace
}  // namespace standin

using namespace standin;

extern "C" {

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute which, int value) {
  Kernel* kernel = find_kernel(function);
  if (!kernel) return no_kernel("cudaFuncSetAttribute");
  if (which == cudaFuncAttributePreferredSharedMemoryCarveout ||
      which == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    return done(cudaSuccess);  // neither changes what a kernel computes
  }
  if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return unsupported(("cudaFuncSetAttribute of attribute " + std::to_string(which)).c_str());
  }
  KernelFacts facts;
  const cudaError_t error = facts_of(*kernel, false, &facts);
  if (error != cudaSuccess) return done(error);
  const int most = host->device()->shared_per_block;
  if (value < 0 || facts.static_shared + value > most) {
    return problem(cudaErrorInvalidValue, "BadLaunch",
                   kernel->name + " wants " + std::to_string(value) + " bytes of dynamic and has " +
                       std::to_string(facts.static_shared) + " of static shared memory; a block may have " +
                       std::to_string(most));
  }
  kernel->dynamic_shared = value;
  return done(cudaSuccess);
}

cudaError_t cudaFuncSetCacheConfig(const void* function, cudaFuncCache) {
  return find_kernel(function) ? done(cudaSuccess) : no_kernel("cudaFuncSetCacheConfig");
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, const void* function) {
  const Kernel* kernel = find_kernel(function);
  if (!kernel) return no_kernel("cudaFuncGetAttributes");
  KernelFacts facts;
  const cudaError_t error = facts_of(*kernel, true, &facts);
  if (error != cudaSuccess) return done(error);
  *out = {};
  out->sharedSizeBytes = facts.static_shared;
  out->constSizeBytes = facts.const_bytes;
  out->localSizeBytes = facts.local_bytes;
  out->numRegs = facts.registers;
  out->maxThreadsPerBlock = facts.max_threads;
  out->ptxVersion = facts.ptx_version;
  out->binaryVersion = host->device()->major * 10 + host->device()->minor;
  const int rest = 48 * 1024 - static_cast<int>(facts.static_shared);
  out->maxDynamicSharedSizeBytes = kernel->dynamic_shared < 0 ? rest : kernel->dynamic_shared;
  out->preferredShmemCarveout = -1;
  return done(cudaSuccess);
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function, int threads,
                                                                   size_t dynamic_shared, unsigned) {
  cudaFuncAttributes attributes;
  cudaDeviceProp properties;
  cudaError_t error = cudaFuncGetAttributes(&attributes, function);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, 0);
  if (error != cudaSuccess) return error;
  const cudaOccDeviceProp device(properties);
  cudaOccFuncAttributes kernel(attributes);
  kernel.maxDynamicSharedSizeBytes = attributes.maxDynamicSharedSizeBytes;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  const cudaOccDeviceState state;
  cudaOccResult result;
  const cudaOccError occupancy =
      cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, dynamic_shared);
  if (occupancy != CUDA_OCC_SUCCESS) return done(cudaErrorInvalidValue);
  *blocks = result.activeBlocksPerMultiprocessor;
  return done(cudaSuccess);
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                          size_t dynamic_shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, dynamic_shared, 0);
}
}
