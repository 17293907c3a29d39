// cp.async.bulk.tensor, tile mode: a box of a tensor to or from shared memory, swizzled, clipped at the tensor's
// bounds.
#include <algorithm>

#include "bulk.h"
#include "formats.h"
#include "reductions.h"
#include "tensor_map.h"

namespace emu {
namespace {

// As PTX says: bits of the shared address, above those of a 16-byte chunk, are mixed with higher ones.
uint32_t swizzled(uint32_t address, int swizzle) {
  const uint32_t row = address >> 7 & ((1u << swizzle) - 1);
  return address ^ row << 4;
}

TensorMap map_at(Warp& w, int lane, uint64_t address, int rank) {
  if (address % 64) fault(kMisaligned, lane, "a tensor map must be aligned to 64 bytes");
  const uint64_t window = address & ~(kWindowSize - 1);
  if (window == kSharedWindow || window == kLocalWindow) {
    fault(kInvalid, lane, "a tensor map must be a parameter or in global memory");
  }
  TensorMap map;
  for (int k = 0; k < 128; k += 8) {
    std::memcpy(reinterpret_cast<uint8_t*>(&map) + k, access(w, lane, Space::generic, address + k, 8, {}), 8);
  }
  if (map.magic != kTensorMapMagic) fault(kInvalid, lane, "these 128 bytes are no tensor map");
  if (map.rank != rank) fault(kInvalid, lane, "a copy of %d dimensions with a tensor map of %d", rank, map.rank);
  if (map.interleave || map.swizzle > 3 || map.nan_fill || !element_bytes(map.type)) {
    fault(kUnsupported, lane, "interleave, type, swizzle or fill of the tensor map");
  }
  return map;
}

struct Box {
  const TensorMap& map;
  int32_t at[kMostDimensions] = {};     // the corner
  uint32_t size[kMostDimensions] = {};  // in elements, when strides have been taken
  uint32_t shared;
  std::vector<Piece> pieces;

  Box(const TensorMap& m, uint32_t to) : map(m), shared(to) {
    for (int d = 0; d < kMostDimensions; ++d) {
      const int stride = d == 0 || d >= m.rank ? 1 : std::max<int>(1, m.element_strides[d]);
      size[d] = d < m.rank ? (m.box[d] + stride - 1) / stride : 1;
    }
  }

  uint32_t row_bytes() const { return size[0] * element_bytes(map.type); }
  uint32_t rows() const { return size[1] * size[2] * size[3] * size[4]; }

  // Where a row of the box begins in global memory, if it is within the tensor.
  bool row_address(uint32_t row, int64_t& address) const {
    address = static_cast<int64_t>(map.address);
    bool inside = true;
    for (int d = 1; d < map.rank; ++d) {
      const int64_t x = at[d] + static_cast<int64_t>(row % size[d]) * std::max<int>(1, map.element_strides[d]);
      row /= size[d];
      inside &= x >= 0 && x < static_cast<int64_t>(map.dims[d]);
      address += x * static_cast<int64_t>(map.strides[d - 1]);
    }
    return inside;
  }

  void add(uint32_t offset, int64_t begin, int64_t end, int64_t global, bool fill) {
    const uint32_t chunk = map.swizzle ? 16 : row_bytes();
    for (int64_t at = begin; at < end;) {
      const int64_t stop = std::min<int64_t>(end, (at / chunk + 1) * chunk);
      const uint32_t to = swizzled(shared + offset + at, map.swizzle);
      pieces.push_back({to, static_cast<uint32_t>(stop - at), fill ? 0 : static_cast<uint64_t>(global + at)});
      at = stop;
    }
  }

  // zeros: with pieces for what is outside of the tensor.
  void cut(bool zeros) {
    const int64_t bytes = element_bytes(map.type), whole = row_bytes();
    for (uint32_t row = 0; row < rows(); ++row) {
      int64_t address;
      int64_t begin = std::clamp<int64_t>(-static_cast<int64_t>(at[0]) * bytes, 0, whole);
      int64_t end = std::clamp<int64_t>((static_cast<int64_t>(map.dims[0]) - at[0]) * bytes, begin, whole);
      if (!row_address(row, address)) end = begin;
      address += at[0] * bytes;
      if (zeros) add(row * whole, 0, begin, 0, true);
      add(row * whole, begin, end, address, false);
      if (zeros) add(row * whole, end, whole, 0, true);
    }
  }
};

Box box_of(Warp& w, const Inst& i, int lane, const TensorMap& map, uint32_t shared, int first) {
  if (map.swizzle && map.box[0] * element_bytes(map.type) > 16 << map.swizzle) {
    fault(kInvalid, lane, "rows of %d bytes with a swizzle of %d", map.box[0] * element_bytes(map.type),
          16 << map.swizzle);
  }
  Box box(map, shared);
  for (int d = 0; d < map.rank; ++d) box.at[d] = get<int32_t>(w, operands(w, i)[first + d], lane);
  return box;
}

// Operands: to, map, mbarrier, mask or -1, coordinates. imm: [5] dimensions.
void load(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    uint64_t to = operand_address(w, i, 0, lane);
    const TensorMap map = map_at(w, lane, operand_address(w, i, 1, lane), i.imm[5]);
    Transfer t{&w, lane, number(w, i)};
    const int multicast = o[3] >= 0 ? get<uint16_t>(w, o[3], lane) : -1;
    t.targets = targets_of(w, lane, to, operand_address(w, i, 2, lane), multicast);
    check_aligned(to, 128, lane, "destination");
    Box box = box_of(w, i, lane, map, to, 4);
    box.cut(true);
    for (const Piece& piece : box.pieces) {
      const Use use{.write = false};
      if (piece.global) check_global(w, lane, piece.global, piece.bytes, false, &use);
    }
    t.total = box.rows() * box.row_bytes();
    t.pieces = std::move(box.pieces);
    begin(*w.block->cluster, std::move(t));
  }
}

// The type of a reduction, from CUtensorMapDataType; -1: not modelled.
int reduction_type(int type) {
  constexpr int table[] = {-1, -1, u32, s32, u64, s64, f16, f32, f64, bf16, f32, -1, -1};
  return table[type];
}

// Operands: map, from, -1, coordinates. imm: [4] Reduction or -1, [5] dimensions.
void store(Warp& w, const Inst& i, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const TensorMap map = map_at(w, lane, operand_address(w, i, 0, lane), i.imm[5]);
    uint64_t from = operand_address(w, i, 1, lane);
    shared_block(w, lane, Space::shared, from);
    check_aligned(from, 128, lane, "source");
    Box box = box_of(w, i, lane, map, from, 3);
    box.cut(false);
    Store s{&w, lane, number(w, i), w.bulk_group[lane]};
    s.pieces = std::move(box.pieces);
    s.reduction = i.imm[4], s.type = reduction_type(map.type);
    if (s.reduction >= 0 && s.type < 0) fault(kUnsupported, lane, "a reduction of the tensor map's type");
    begin(*w.block->cluster, std::move(s));
  }
}

// Operands: map, -1, -1, coordinates. imm: [5] dimensions, 0: the map itself.
void prefetch(Warp& w, const Inst& i, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const uint64_t address = operand_address(w, i, 0, lane);
    ++w.block->machine->counts.prefetches;
    if (i.imm[5] == 0) {
      access(w, lane, Space::generic, address, 8, {});
      continue;
    }
    const TensorMap map = map_at(w, lane, address, i.imm[5]);
    Box box = box_of(w, i, lane, map, 0, 3);
    box.cut(false);
    for (const Piece& piece : box.pieces) check_global(w, lane, piece.global, piece.bytes, false, nullptr);
  }
}

const bool registered = [] {
  add("tensor.load", load), add("tensor.store", store), add("tensor.prefetch", prefetch);
  return true;
}();

}  // namespace
}  // namespace emu
