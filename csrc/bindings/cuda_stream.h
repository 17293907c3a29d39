// Where a CUDA op runs: its tensors' device and torch's current stream of it.
#pragma once

#include <cuda_runtime_api.h>

#include "tensor.h"

#ifndef CAPMOE_EMULATED
#include <torch/csrc/stable/accelerator.h>
#endif

// Before 2.13 the stable ABI's stream has no native handle. The package asks for 2.13; built by hand it runs with 2.11,
// as on the machine of docs/gpu.md. TORCH_VERSION_2_13_0 is not defined there.
#define CAPMOE_TORCH_2_13 0x020d000000000000
#if !defined(CAPMOE_EMULATED) && TORCH_FEATURE_VERSION < CAPMOE_TORCH_2_13
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace capmoe {

// The kernels are compiled for compute capability 8.0 and on. An error of CUDA's own is left to the first launch.
inline void check_compute_capability() {
  static thread_local int known = -1;  // the last device that was found new enough
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device == known) return;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) return;
  if (cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) return;
  STD_TORCH_CHECK(major >= 8, "the CUDA kernels need a GPU of compute capability 8.0 or more, cuda:", device, " has ",
                  major, ".", minor, "; with CAPMOE_BACKENDS=cpu the reference serves it");
  known = device;
}

#ifdef CAPMOE_EMULATED

// Tensors are the CPU's, and the kernels run there, in order.
struct DeviceGuard {
  explicit DeviceGuard(const Tensor&) { check_compute_capability(); }
};
inline cudaStream_t current_stream(const Tensor&) { return nullptr; }

#else

// Makes the tensor's device the current one for as long as it lives.
struct DeviceGuard {
  explicit DeviceGuard(const Tensor& tensor) : guard(tensor.get_device_index()) { check_compute_capability(); }
  torch::stable::accelerator::DeviceGuard guard;
};

inline cudaStream_t current_stream(const Tensor& tensor) {
  const int32_t device = tensor.get_device_index();
#if TORCH_FEATURE_VERSION >= CAPMOE_TORCH_2_13
  return static_cast<cudaStream_t>(torch::stable::accelerator::getCurrentStream(device).nativeHandle());
#else
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
#endif
}

#endif

}  // namespace capmoe
