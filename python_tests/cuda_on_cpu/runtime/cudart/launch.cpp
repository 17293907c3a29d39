// Launches: the configuration between <<<>>> and the stub, and each way to start a kernel.
#include <utility>

#include "standin.h"

namespace standin {
namespace {

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};

thread_local std::vector<Configuration> pushed;

cudaError_t launch(const void* function, const Configuration& c, void** args, dim3 cluster, bool cooperative) {
  const Kernel* kernel = find_kernel(function);
  if (!kernel) return problem(cudaErrorInvalidDeviceFunction, "BadLaunch", "launch of a function that is no kernel");
  if (!host) return done(cudaErrorInitializationError);
  if (!valid_stream(c.stream)) {
    return problem(cudaErrorInvalidResourceHandle, "BadLaunch", kernel->name + " on a stream that does not exist");
  }
  const cudaError_t before = done(cudaSuccess);
  if (before != cudaSuccess) return before;
  if (cooperative) {
    int blocks = 0;
    const cudaError_t error =
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, c.block.x * c.block.y * c.block.z, c.shared);
    if (error != cudaSuccess) return error;
    const uint64_t wanted = uint64_t{c.grid.x} * c.grid.y * c.grid.z;
    const uint64_t most = uint64_t(blocks) * host->device()->multiprocessors;
    if (wanted > most) {
      return problem(cudaErrorCooperativeLaunchTooLarge, "BadLaunch",
                     "a cooperative launch of " + std::to_string(wanted) + " blocks, " + std::to_string(most) + " fit");
    }
  }
  const Request request = {kernel->module,
                           kernel->name.c_str(),
                           {c.grid.x, c.grid.y, c.grid.z},
                           {c.block.x, c.block.y, c.block.z},
                           {cluster.x, cluster.y, cluster.z},
                           c.shared,
                           kernel->dynamic_shared,
                           cooperative,
                           args};
  return done(static_cast<cudaError_t>(host->launch(&request)));
}

}  // namespace
}  // namespace standin

using namespace standin;

extern "C" {

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  pushed.push_back({grid, block, shared, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (pushed.empty()) return problem(cudaErrorInvalidConfiguration, "BadLaunch", "a kernel called without <<<>>>");
  const Configuration top = pushed.back();
  pushed.pop_back();
  *grid = top.grid, *block = top.block, *shared = top.shared;
  *static_cast<cudaStream_t*>(stream) = top.stream;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** args, size_t shared,
                             cudaStream_t stream) {
  return launch(function, {grid, block, shared, stream}, args, {0, 0, 0}, false);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** args, size_t shared,
                               cudaStream_t stream) {
  return launch(kernel, {grid, block, shared, stream}, args, {0, 0, 0}, false);
}

cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void** args, size_t shared,
                                        cudaStream_t stream) {
  return launch(function, {grid, block, shared, stream}, args, {0, 0, 0}, true);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** args) {
  dim3 cluster(0, 0, 0);
  bool cooperative = false;
  for (unsigned k = 0; k < config->numAttrs; ++k) {
    const cudaLaunchAttribute& one = config->attrs[k];
    switch (one.id) {
      case cudaLaunchAttributeClusterDimension:
        cluster = {one.val.clusterDim.x, one.val.clusterDim.y, one.val.clusterDim.z};
        break;
      case cudaLaunchAttributeCooperative:
        cooperative = one.val.cooperative;
        break;
      case cudaLaunchAttributeIgnore:
      case cudaLaunchAttributePriority:
      case cudaLaunchAttributeClusterSchedulingPolicyPreference:
      case cudaLaunchAttributeProgrammaticStreamSerialization:  // launches never overlap here
        break;
      default:
        return unsupported(("cudaLaunchKernelExC with attribute " + std::to_string(one.id)).c_str());
    }
  }
  return launch(function, {config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream}, args, cluster,
                cooperative);
}
}
