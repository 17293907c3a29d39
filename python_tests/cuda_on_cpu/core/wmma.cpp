// wmma.load, wmma.mma and wmma.store. PTX leaves open which lane holds which element of a fragment. Here elements go
// to lanes in the order of rows: a lane has all of its registers filled, then the next lane; what is left over is 0.
#include <algorithm>

#include "formats.h"
#include "lanes.h"

namespace emu {
namespace {

// imm of load and store: [0] rows | columns << 8, [1] the type, [2] registers, [3] offset, [4] bit 0: the address has
// 64 bits, bit 1: columns lie one behind another, from bit 2: the space. Operands: address, stride, registers.
template <bool kStore>
void move(Warp& w, const Inst& i, uint32_t) {
  const int32_t* o = operands(w, i);
  const int rows = i.imm[0] & 255, columns = i.imm[0] >> 8, bits = bits_of(i.imm[1]), per = 32 / bits;
  const int in_lane = per * i.imm[2];
  uint64_t bases[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    bases[lane] = (i.imm[4] & 1 ? get<uint64_t>(w, o[0], lane) : get<uint32_t>(w, o[0], lane)) + i.imm[3];
    if (!kStore) {
      for (int r = 0; r < i.imm[2]; ++r) set<uint32_t>(w, o[2 + r], lane, 0);
    }
  }
  for (int e = 0; e < rows * columns; ++e) {
    const int lane = e / in_lane, slot = e % in_lane, row = e / columns, column = e % columns;
    const uint64_t stride = get<uint32_t>(w, o[1], lane);
    const uint64_t at = i.imm[4] & 2 ? column * stride + row : row * stride + column;
    uint8_t* memory =
        access(w, lane, static_cast<Space>(i.imm[4] >> 2), bases[lane] + at * (bits / 8), bits / 8, {.write = kStore});
    uint8_t* element = w.registers + o[2 + slot / per] + 4 * lane + slot % per * (bits / 8);
    kStore ? std::memcpy(memory, element, bits / 8) : std::memcpy(element, memory, bits / 8);
  }
}

uint32_t element(const Warp& w, const int32_t* registers, int count, int type, int index) {
  const int bits = bits_of(type), per = 32 / bits, lane = index / (per * count), slot = index % (per * count);
  const uint32_t value = get<uint32_t>(w, registers[slot / per], lane) >> (bits * (slot % per));
  return bits == 32 ? value : value & ((1u << bits) - 1);
}

uint32_t rounded(int type, double sum, bool saturate) {
  if (type == s32) {
    const auto total = static_cast<int64_t>(sum);
    return static_cast<uint32_t>(saturate ? std::clamp<int64_t>(total, INT32_MIN, INT32_MAX) : total);
  }
  if (type == f16) return encode16(kHalf, round_to(kHalf, sum, kNearest));
  const float single = canonical(static_cast<float>(sum));
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  return bits;
}

// imm: [0] m | n << 8 | k << 16, [1] the type of A and B, [2] of C, [3] of D, [4] saturate | registers of A << 8 |
// registers of B << 16. Operands: d, a, b, c.
void multiply(Warp& w, const Inst& i, uint32_t) {
  const int m = i.imm[0] & 255, n = i.imm[0] >> 8 & 255, k = i.imm[0] >> 16, a_count = i.imm[4] >> 8 & 255;
  const int b_count = i.imm[4] >> 16, d_count = i.imm[3] == f16 ? 4 : 8, c_count = i.imm[2] == f16 ? 4 : 8;
  const int32_t *d = operands(w, i), *a = d + d_count, *b = a + a_count, *c = b + b_count;
  double left[32 * 16], right[16 * 32];
  for (int e = 0; e < m * k; ++e) left[e] = decode(element(w, a, a_count, i.imm[1], e), i.imm[1]);
  for (int e = 0; e < k * n; ++e) right[e] = decode(element(w, b, b_count, i.imm[1], e), i.imm[1]);
  uint32_t out[8][kLanes] = {};
  const int per = 32 / bits_of(i.imm[3]);
  for (int e = 0; e < m * n; ++e) {
    double sum = decode(element(w, c, c_count, i.imm[2], e), i.imm[2]);
    for (int x = 0; x < k; ++x) sum += left[e / n * k + x] * right[x * n + e % n];
    const int lane = e / (per * d_count), slot = e % (per * d_count);
    out[slot / per][lane] |= rounded(i.imm[3], sum, i.imm[4] & 1) << (32 / per * (slot % per));
  }
  for (int r = 0; r < d_count; ++r) {
    for (int lane = 0; lane < kLanes; ++lane) set<uint32_t>(w, d[r], lane, out[r][lane]);
  }
  w.block->machine->counts.tensor_flops += 2 * m * n * k;
}

const bool registered = [] {
  add("wmma.load", move<false>, Kind::sync), add("wmma.store", move<true>, Kind::sync);
  add("wmma.mma", multiply, Kind::sync);
  return true;
}();

}  // namespace
}  // namespace emu
