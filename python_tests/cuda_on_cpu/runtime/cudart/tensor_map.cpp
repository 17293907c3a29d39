// cuTensorMapEncodeTiled. The core has no tensor maps, so that making one is an error.
#include <cuda.h>

#include "standin.h"

namespace standin {
namespace {

CUresult encode_tiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                      const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  unsupported("cuTensorMapEncodeTiled");
  return CUDA_ERROR_NOT_SUPPORTED;
}

}  // namespace

void* tensor_map_encoder() { return reinterpret_cast<void*>(&encode_tiled); }

}  // namespace standin
