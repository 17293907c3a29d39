// What the 128 bytes of a CUtensorMap hold here: the arguments of cuTensorMapEncodeTiled. The driver's own layout is
// secret. tensor_map.py writes the same struct; whatever stands in for the driver must, too.
#pragma once

#include <cstdint>

namespace emu {

constexpr uint32_t kTensorMapMagic = 0x70616d74;  // "tmap"
constexpr int kMostDimensions = 5;

struct TensorMap {
  uint64_t address;                       // of the tensor in global memory
  uint64_t strides[kMostDimensions - 1];  // in bytes, of all dimensions but the first
  uint64_t dims[kMostDimensions];         // in elements, the first one contiguous
  uint32_t magic;
  uint16_t box[kMostDimensions];  // in elements
  uint8_t element_strides[kMostDimensions];
  uint8_t type;          // the rest as the CUtensorMap enums of cuda.h: CUtensorMapDataType,
  uint8_t rank;          // 1 to 5,
  uint8_t interleave;    // CUtensorMapInterleave: 0,
  uint8_t swizzle;       // CUtensorMapSwizzle: 0 to 3,
  uint8_t l2_promotion;  // without effect here,
  uint8_t nan_fill;      // CUtensorMapFloatOOBfill: 0
  uint8_t unused[23];
};
static_assert(sizeof(TensorMap) == 128);

// Bytes of an element of a CUtensorMapDataType, 0: not modelled.
constexpr int element_bytes(int type) {
  constexpr int table[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  return type < 13 ? table[type] : 0;
}

}  // namespace emu
