// tensormap.replace and tensormap.cp_fenceproxy: maps that a kernel makes.
#include "tensor_map.h"

#include <algorithm>

#include "bulk.h"

namespace emu {
namespace {

enum Field {
  kAddress,
  kRank,
  kBoxDim,
  kGlobalDim,
  kGlobalStride,
  kElementStride,
  kElementType,
  kInterleave,
  kSwizzle,
  kSwizzleAtomicity,
  kFill
};

// PTX numbers the types in another order than cuda.h does.
int type_of(int lane, uint64_t ptx) {
  constexpr uint8_t table[] = {0, 1, 2, 3, 4, 5, 6, 7, 10, 8, 9, 11, 12};
  if (ptx >= sizeof(table)) fault(kUnsupported, lane, "element type %llu", static_cast<unsigned long long>(ptx));
  return table[ptx];
}

int dimension(int lane, int64_t d, int most) {
  if (d < 0 || d >= most) fault(kInvalid, lane, "dimension %lld of a tensor map", static_cast<long long>(d));
  return d;
}

void put(TensorMap& map, int lane, int field, int64_t ordinal, uint64_t value) {
  switch (field) {
    case kAddress:
      if (value % 16) fault(kMisaligned, lane, "the tensor of a tensor map must be aligned to 16 bytes");
      map.address = value;
      return;
    case kRank:
      map.rank = dimension(lane, value, kMostDimensions) + 1;
      return;
    case kBoxDim:
      if (value < 1 || value > 256) fault(kInvalid, lane, "a box dimension must be 1 to 256");
      map.box[dimension(lane, ordinal, kMostDimensions)] = value;
      return;
    case kGlobalDim:
      map.dims[dimension(lane, ordinal, kMostDimensions)] = value;
      return;
    case kGlobalStride:
      if (value % 16) fault(kMisaligned, lane, "strides of a tensor map must be multiples of 16");
      map.strides[dimension(lane, ordinal, kMostDimensions - 1)] = value;
      return;
    case kElementStride:
      if (value < 1 || value > 8) fault(kInvalid, lane, "an element stride must be 1 to 8");
      map.element_strides[dimension(lane, ordinal, kMostDimensions)] = value;
      return;
    case kElementType:
      map.type = type_of(lane, value);
      return;
    default:
      if (value > (field == kSwizzle ? 3 : 0)) {
        fault(kUnsupported, lane, "interleave, swizzle, atomicity or fill %llu",
              static_cast<unsigned long long>(value));
      }
      if (field == kSwizzle) map.swizzle = value;
  }
}

// Operands: address, the new value. imm: [4] Field, [5] ordinal and above it Space and bytes of the value.
void replace(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  const Space space = static_cast<Space>(i.imm[5] >> 8 & 0xff);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const uint64_t address = operand_address(w, i, 0, lane);
    check_aligned(address, 128, lane, "tensor map");
    uint8_t bytes[sizeof(TensorMap)];
    for (int k = 0; k < 128; k += 8) std::memcpy(bytes + k, access(w, lane, space, address + k, 8, {}), 8);
    TensorMap map;
    std::memcpy(&map, bytes, 128);
    const bool blank = std::all_of(bytes, bytes + 128, [](uint8_t x) { return x == 0; });
    if (!blank && map.magic != kTensorMapMagic)
      fault(kInvalid, lane, "these 128 bytes are neither zero nor a tensor map");
    map.magic = kTensorMapMagic;
    const uint64_t value = i.imm[5] >> 16 == 8 ? get<uint64_t>(w, o[1], lane) : get<uint32_t>(w, o[1], lane);
    put(map, lane, i.imm[4], i.imm[5] & 0xff, value);
    std::memcpy(bytes, &map, 128);
    for (int k = 0; k < 128; k += 8) std::memcpy(access(w, lane, space, address + k, 8, {.write = true}), bytes + k, 8);
  }
}

// All lanes copy one map from shared to global memory. Operands: to, from.
void copy(Warp& w, const Inst& i, uint32_t mask) {
  const int lane = __builtin_ctz(mask);
  synchronise_lanes(w, mask);
  const uint64_t to = operand_address(w, i, 0, lane), from = operand_address(w, i, 1, lane);
  check_aligned(to, 128, lane, "tensor map"), check_aligned(from, 128, lane, "tensor map");
  for (int k = 0; k < 128; k += 8) {
    const uint8_t* word = access(w, lane, Space::shared, from + k, 8, {});
    std::memcpy(access(w, lane, Space::generic, to + k, 8, {.write = true, .data = word}), word, 8);
  }
}

const bool registered = [] {
  add("tensormap.replace", replace), add("tensormap.copy", copy, Kind::sync);
  return true;
}();

}  // namespace
}  // namespace emu
