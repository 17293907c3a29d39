// ldmatrix, stmatrix and mma.sync (of f64: tensor_f64.cpp). Fragment layouts are those of the PTX manual, section on
// warp-level matrix instructions; sums are made in double and rounded once, where hardware may round oftener.
#include <algorithm>
#include <bit>

#include "formats.h"
#include "lanes.h"

namespace emu {
namespace {

// Where in its 8 x 8 matrix a lane's two values lie.
std::pair<int, int> row_column(int lane, int half, bool transposed) {
  const int group = lane / 4, in_group = lane % 4 * 2 + half;
  return transposed ? std::pair(in_group, group) : std::pair(group, in_group);
}

// Operands: address, then a register per matrix. imm: [0] matrices, [1] transposed, [2] offset, [3] the address
// register has 64 bits.
template <bool kStore>
void matrix_move(Warp& w, const Inst& i, uint32_t) {
  const int32_t* o = operands(w, i);
  uint32_t addresses[kLanes];  // all read first: a matrix may go to the register of the addresses
  for (int lane = 0; lane < 8 * i.imm[0]; ++lane) {
    const uint64_t base = i.imm[3] ? get<uint64_t>(w, o[0], lane) : get<uint32_t>(w, o[0], lane);
    addresses[lane] = static_cast<uint32_t>(base + i.imm[2]);
  }
  count_rows(w, addresses, 8 * i.imm[0]);
  for (int m = 0; m < i.imm[0]; ++m) {
    uint16_t rows[8][8] = {};
    const auto visit = [&](auto function) {
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int half = 0; half < 2; ++half) {
          const auto [row, column] = row_column(lane, half, i.imm[1]);
          function(lane, 16 * half, rows[row][column]);
        }
      }
    };
    if (kStore) {
      visit([&](int lane, int shift, uint16_t& x) { x = get<uint32_t>(w, o[1 + m], lane) >> shift; });
    }
    for (int r = 0; r < 8; ++r) {
      uint8_t* at = access(w, 8 * m + r, Space::shared, addresses[8 * m + r], 16, {.write = kStore});
      kStore ? std::memcpy(at, rows[r], 16) : std::memcpy(rows[r], at, 16);
    }
    if (kStore) continue;
    uint32_t values[kLanes] = {};
    if (!i.imm[1]) {  // the rows one after another are the lanes' pairs
      std::memcpy(w.registers + o[1 + m], rows, sizeof(rows));
      continue;
    }
    visit([&](int lane, int shift, uint16_t x) { values[lane] |= static_cast<uint32_t>(x) << shift; });
    for (int lane = 0; lane < kLanes; ++lane) set<uint32_t>(w, o[1 + m], lane, values[lane]);
  }
}

// Operands: d, a: the 8 x 8 matrix of 16-bit values, transposed between registers.
void matrix_transpose(Warp& w, const Inst& i, uint32_t) {
  const int32_t* o = operands(w, i);
  uint32_t in[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) in[lane] = get<uint32_t>(w, o[1], lane);
  const auto element = [&](int row, int column) { return in[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff; };
  for (int lane = 0; lane < kLanes; ++lane) {
    const int row = lane / 4, column = lane % 4 * 2;
    set<uint32_t>(w, o[0], lane, element(column, row) | element(column + 1, row) << 16);
  }
}

template <int kType>
auto element(uint32_t bits) {
  if constexpr (kType == f16) return decode_half(bits);
  if constexpr (kType == bf16) return decode_bfloat(bits);
  if constexpr (kType == s8) return static_cast<int8_t>(bits);
  if constexpr (kType == u8) return static_cast<uint8_t>(bits);
  if constexpr (kType == tf32) return std::bit_cast<float>(bits & 0xffffe000);
}

// Where a lane's values of an operand lie: A [16, k], B [8, k]. A register holds `per` neighbours in k; a lane's
// registers go down 8 rows first (A), then on in k. put(row, column, value).
template <class Element, class Put>
inline void for_fragment(const Warp& w, const int32_t* registers, int k, int bits, bool is_a, Element of, Put put) {
  const int per = 32 / bits, step = 4 * per;
  int index = 0;
  for (int k0 = 0; k0 < k; k0 += step) {
    for (int down = 0; down < (is_a ? 16 : 8); down += 8) {
      const Row<uint32_t> row(w, registers[index++]);
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int p = 0; p < per; ++p) {
          const uint32_t value = row.lane[lane] >> (bits * p);
          put(lane / 4 + down, k0 + lane % 4 * per + p, static_cast<double>(of(value)));
        }
      }
    }
  }
}

template <class Put>
void read_fragment(const Warp& w, const int32_t* registers, int k, int type, bool is_a, Put put) {
  switch (type) {
    case f16:
      return for_fragment(w, registers, k, bits_of(f16), is_a, element<f16>, put);
    case bf16:
      return for_fragment(w, registers, k, bits_of(bf16), is_a, element<bf16>, put);
    case tf32:
      return for_fragment(w, registers, k, bits_of(tf32), is_a, element<tf32>, put);
    case s8:
      return for_fragment(w, registers, k, bits_of(s8), is_a, element<s8>, put);
    case u8:
      return for_fragment(w, registers, k, bits_of(u8), is_a, element<u8>, put);
    default:
      return for_fragment(
          w, registers, k, bits_of(type), is_a, [type](uint32_t bits) { return decode(bits, type); }, put);
  }
}

// A row of B or of the sums. The compiler takes the widest instructions that the CPU has; nothing is contracted.
typedef double Eight __attribute__((vector_size(64), aligned(64)));

__attribute__((target_clones("avx512f", "avx2", "default"))) void multiply(const double (*a)[64], const Eight* b,
                                                                           Eight* sums, int k) {
  for (int row = 0; row < 16; ++row) {
    Eight sum = {};
    for (int x = 0; x < k; ++x) sum += a[row][x] * b[x];
    sums[row] = sum;
  }
}

// Operands: d, a, b, c registers. imm: [0] k, [1] the type of A, [2] of B, [3] of C and D, [4] saturate.
void mma(Warp& w, const Inst& i, uint32_t) {
  const int32_t* o = operands(w, i);
  const int k = i.imm[0], accumulator = i.imm[3], out_registers = accumulator == f16 ? 2 : 4;
  const int a_registers = 16 * k * bits_of(i.imm[1]) / 1024, b_registers = 8 * k * bits_of(i.imm[2]) / 1024;
  double a[16][64];
  Eight b[64], sums[16];
  const int32_t *a_at = o + out_registers, *b_at = a_at + a_registers, *c_at = b_at + b_registers;
  read_fragment(w, a_at, k, i.imm[1], true, [&](int row, int column, double x) { a[row][column] = x; });
  read_fragment(w, b_at, k, i.imm[2], false, [&](int column, int row, double x) { b[row][column] = x; });
  multiply(a, b, sums, k);
  uint32_t results[4][kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int e = 0; e < 4; ++e) {
      const int row = lane / 4 + 8 * (e / 2), column = lane % 4 * 2 + e % 2;
      const double sum = sums[row][column];
      if (accumulator == f16) {
        const uint16_t c = get<uint32_t>(w, c_at[e / 2], lane) >> (16 * (e % 2));
        const uint32_t bits =
            encode16(kHalf, round_to(kHalf, static_cast<long double>(decode_half(c)) + sum, kNearest));
        results[e / 2][lane] |= bits << (16 * (e % 2));
      } else if (accumulator == s32) {
        const int64_t total = get<int32_t>(w, c_at[e], lane) + static_cast<int64_t>(sum);
        results[e][lane] = static_cast<uint32_t>(i.imm[4] ? std::clamp<int64_t>(total, INT32_MIN, INT32_MAX) : total);
      } else {
        const float total = canonical(static_cast<float>(get<float>(w, c_at[e], lane) + sum));
        std::memcpy(&results[e][lane], &total, 4);
      }
    }
  }
  for (int r = 0; r < out_registers; ++r) {
    for (int lane = 0; lane < kLanes; ++lane) set<uint32_t>(w, o[r], lane, results[r][lane]);
  }
  w.block->machine->counts.tensor_flops += 2 * 16 * 8 * k;
}

const bool registered = [] {
  add("ldmatrix", matrix_move<false>, Kind::sync), add("stmatrix", matrix_move<true>, Kind::sync);
  add("mma", mma, Kind::sync);
  add("matrix.transpose", matrix_transpose, Kind::sync);
  return true;
}();

}  // namespace
}  // namespace emu
