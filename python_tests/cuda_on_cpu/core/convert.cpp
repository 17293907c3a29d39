// cvt, and moves between registers of different widths.
#include <algorithm>

#include "formats.h"
#include "lanes.h"

namespace emu {
namespace {

constexpr bool is_float(int t) { return t >= f16; }
constexpr bool is_signed(int t) { return t == s8 || t == s16 || t == s32 || t == s64; }
uint64_t raw(const Warp& w, int32_t offset, int lane, int type) {
  return bits_of(type) == 64 ? get<uint64_t>(w, offset, lane) : get<uint32_t>(w, offset, lane);
}

const Format& format_of(int type) {
  switch (type) {
    case f16:
      return kHalf;
    case bf16:
      return kBfloat;
    case tf32:
      return kTf32;
    case f64:
      return kDouble;
    default:
      return kSingle;
  }
}

uint64_t encode(long double x, int type) {
  if (type == f16 || type == bf16) return encode16(format_of(type), x);
  if (type == f64) {
    const double d = x;
    uint64_t bits;
    std::memcpy(&bits, &d, 8);
    return bits;
  }
  const float f = canonical(static_cast<float>(x));
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

uint64_t to_integer(long double x, int type, int mode, int from) {
  if (std::isnan(x)) return bits_of(type) == 64 || from == f64 ? 1ull << (bits_of(type) - 1) : 0;
  const int bits = bits_of(type);
  const long double low = is_signed(type) ? -ldexpl(1, bits - 1) : 0;
  const long double high = ldexpl(1, is_signed(type) ? bits - 1 : bits) - 1;
  const long double value = std::clamp(to_integral(x, mode), low, high);
  return is_signed(type) ? static_cast<uint64_t>(static_cast<int64_t>(value)) : static_cast<uint64_t>(value);
}

uint64_t integer_to_integer(uint64_t bits, int from, int to, bool sat) {
  if (sat) return to_integer(decode(bits, from), to, kZero, from);
  const int64_t value = is_signed(from) ? static_cast<int64_t>(decode(bits, from)) : 0;
  const uint64_t wide = is_signed(from) ? static_cast<uint64_t>(value) : static_cast<uint64_t>(decode(bits, from));
  if (bits_of(to) == 64) return wide;
  const uint64_t cut = wide & ((1ull << bits_of(to)) - 1);
  return is_signed(to) ? static_cast<uint64_t>(static_cast<int64_t>(decode(cut, to))) : cut;
}

// imm: [0] to, [1] from, [2] rounding, [3] ftz | sat << 1 | relu << 2 | round to an integral float << 3 | satfinite <<
// 4
uint64_t convert(const Inst& i, uint64_t bits) {
  const int to = i.imm[0], from = i.imm[1], mode = i.imm[2];
  const bool ftz = i.imm[3] & 1, sat = i.imm[3] & 2, relu = i.imm[3] & 4, integral = i.imm[3] & 8;
  if (!is_float(to) && !is_float(from)) return integer_to_integer(bits, from, to, sat);
  long double x = decode(bits, from);
  if (ftz && from == f32) x = flush(static_cast<float>(x));
  if (!is_float(to)) return to_integer(x, to, mode, from);
  if (integral) x = to_integral(x, mode);
  x = round_to(format_of(to), x, integral ? int{kNearest} : mode);
  if (ftz && to == f32) x = flush(static_cast<float>(x));
  if (i.imm[3] & 16 && std::isinf(x)) x = copysignl(format_of(to).largest, x);
  if (sat) x = std::isnan(x) || x < 0 ? 0 : std::min(x, 1.0L);
  if (relu && !std::isnan(x) && x < 0) x = 0;
  return encode(x, to);
}

void cvt(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const uint64_t out = convert(i, raw(w, o[1], lane, i.imm[1]));
    if (bits_of(i.imm[0]) == 64) {
      set<uint64_t>(w, o[0], lane, out);
    } else {
      set<uint32_t>(w, o[0], lane, bits_of(i.imm[0]) == 16 && !is_signed(i.imm[0]) ? out & 0xffff : out);
    }
  }
}

// Two floats to a pair: the first source becomes the upper half.
void cvt_pair(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const uint64_t high = convert(i, get<uint32_t>(w, o[1], lane)), low = convert(i, get<uint32_t>(w, o[2], lane));
    set<uint32_t>(w, o[0], lane, high << 16 | low);
  }
}

// imm: [0] how many parts, [1] bits of each. Operands: the whole, then the parts from the lowest.
void pack(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  const int parts = i.imm[0], bits = i.imm[1], all = parts * bits;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    uint64_t whole = 0;
    for (int p = 0; p < parts; ++p) {
      whole |= (get<uint32_t>(w, o[1 + p], lane) & ((1ull << bits) - 1)) << (p * bits);
    }
    all == 64 ? set<uint64_t>(w, o[0], lane, whole) : set<uint32_t>(w, o[0], lane, whole);
  }
}

void unpack(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  const int parts = i.imm[0], bits = i.imm[1], all = parts * bits;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const uint64_t whole = all == 64 ? get<uint64_t>(w, o[0], lane) : get<uint32_t>(w, o[0], lane);
    for (int p = 0; p < parts; ++p) {
      if (o[1 + p] >= 0) set<uint32_t>(w, o[1 + p], lane, whole >> (p * bits) & ((1ull << bits) - 1));
    }
  }
}

const bool registered = [] {
  add("cvt", cvt), add("cvt.pair", cvt_pair), add("pack", pack), add("unpack", unpack);
  return true;
}();

}  // namespace
}  // namespace emu
