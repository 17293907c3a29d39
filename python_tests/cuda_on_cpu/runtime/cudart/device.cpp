// One device, whose numbers are those of ../devices.py.
#include <cstdio>

#include "standin.h"

namespace standin {
namespace {

constexpr int kRegisters = 65536, kThreads = 1024, kStaticShared = 48 * 1024, kReservedShared = 1024;

const Device* device() { return host ? host->device() : nullptr; }

// The attributes that launchers ask for; -1 for one whose value is not known.
int64_t attribute(const Device& d, cudaDeviceAttr which) {
  switch (which) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return kThreads;
    case cudaDevAttrMaxBlockDimZ:
      return 64;
    case cudaDevAttrMaxGridDimX:
      return 2147483647;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return kStaticShared;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return d.shared_per_block;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return d.shared_per_multiprocessor;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return kReservedShared;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return kRegisters;
    case cudaDevAttrMultiProcessorCount:
      return d.multiprocessors;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return d.threads_per_multiprocessor;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return d.blocks_per_multiprocessor;
    case cudaDevAttrL2CacheSize:
      return d.l2_bytes;
    case cudaDevAttrComputeCapabilityMajor:
      return d.major;
    case cudaDevAttrComputeCapabilityMinor:
      return d.minor;
    case cudaDevAttrClusterLaunch:
      return d.major >= 9;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrUnifiedAddressing:
      return 1;
    default:
      return -1;
  }
}

}  // namespace
}  // namespace standin

using namespace standin;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device() ? 1 : 0;
  return done(cudaSuccess);
}

cudaError_t cudaGetDevice(int* out) {
  *out = 0;
  return done(cudaSuccess);
}

cudaError_t cudaSetDevice(int which) { return done(which == 0 ? cudaSuccess : cudaErrorInvalidDevice); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  const Device* d = device();
  if (!d) return done(cudaErrorInitializationError);
  const int64_t known = attribute(*d, which);
  if (known < 0) return unsupported(("cudaDeviceGetAttribute of attribute " + std::to_string(which)).c_str());
  *value = static_cast<int>(known);
  return done(cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  const Device* d = device();
  if (!d) return done(cudaErrorInitializationError);
  *p = {};
  std::snprintf(p->name, sizeof(p->name), "emulated sm_%d%d", d->major, d->minor);
  p->major = d->major;
  p->minor = d->minor;
  p->multiProcessorCount = d->multiprocessors;
  p->warpSize = 32;
  p->regsPerBlock = p->regsPerMultiprocessor = kRegisters;
  p->maxThreadsPerBlock = kThreads;
  p->maxThreadsPerMultiProcessor = d->threads_per_multiprocessor;
  p->maxBlocksPerMultiProcessor = d->blocks_per_multiprocessor;
  p->sharedMemPerBlock = kStaticShared;
  p->sharedMemPerBlockOptin = d->shared_per_block;
  p->sharedMemPerMultiprocessor = d->shared_per_multiprocessor;
  p->reservedSharedMemPerBlock = kReservedShared;
  p->l2CacheSize = d->l2_bytes;
  p->cooperativeLaunch = p->unifiedAddressing = 1;
  p->clusterLaunch = d->major >= 9;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = kThreads, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  return done(cudaSuccess);
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return done(cudaSuccess);
}

cudaError_t cudaDriverGetVersion(int* version) { return cudaRuntimeGetVersion(version); }
}
