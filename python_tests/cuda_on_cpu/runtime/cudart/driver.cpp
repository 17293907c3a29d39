// The driver's functions that a launcher reaches through the runtime.
#include <cstring>

#include "standin.h"

namespace standin {
void* tensor_map_encoder();  // tensor_map.cpp

namespace {

cudaError_t look_up(const char* name, void** function, cudaDriverEntryPointQueryResult* status) {
  *function = std::strcmp(name, "cuTensorMapEncodeTiled") == 0 ? tensor_map_encoder() : nullptr;
  if (status) *status = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return *function ? done(cudaSuccess) : unsupported(name);
}

}  // namespace
}  // namespace standin

using namespace standin;

extern "C" {

cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long,
                                    cudaDriverEntryPointQueryResult* status) {
  return look_up(name, function, status);
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  return look_up(name, function, status);
}
}
