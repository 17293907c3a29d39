// cuTensorMapEncodeTiled: the emulator's core has its own layout of the 128 bytes, which Python knows.
#include <cuda.h>

#include <algorithm>

#include "standin.h"

namespace standin {
namespace {

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                      const cuuint64_t* dims, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* element_strides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion l2_promotion, CUtensorMapFloatOOBfill fill) {
  if (!host || rank < 1 || rank > 5) return CUDA_ERROR_INVALID_VALUE;
  TensorMapRequest request = {};
  request.address = reinterpret_cast<uint64_t>(address);
  std::copy_n(dims, rank, request.dims);
  std::copy_n(strides, rank - 1, request.strides);
  std::copy_n(box, rank, request.box);
  std::copy_n(element_strides, rank, request.element_strides);
  request.type = type, request.rank = rank, request.interleave = interleave, request.swizzle = swizzle;
  request.l2_promotion = l2_promotion, request.nan_fill = fill;
  return host->tensor_map(&request, map) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // namespace

void* tensor_map_encoder() { return reinterpret_cast<void*>(&encode_tiled); }

}  // namespace standin
