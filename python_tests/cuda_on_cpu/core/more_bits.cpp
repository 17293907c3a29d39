// Rarer integer instructions: fns, szext, dp2a, mul24, mad24, lop3 with a predicate; and min and max of magnitudes.
#include <algorithm>

#include "formats.h"
#include "lanes.h"

namespace emu {
namespace {

uint32_t find_nth(uint32_t mask, uint32_t base, int32_t offset) {
  const int step = offset < 0 ? -1 : 1;
  int left = std::abs(static_cast<int64_t>(offset)) - (offset != 0);
  for (int64_t at = base; at >= 0 && at < 32; at += step) {
    if ((mask >> at & 1) && left-- == 0) return at;
    if (offset == 0) break;
  }
  return ~0u;
}

// imm: [0] signed, [1] clamp.
uint32_t extend(const Inst& i, uint32_t a, uint32_t b) {
  if (b >= 32 && i.imm[1]) return a;
  b &= 31;
  const uint32_t upper = ~0u << b;
  const bool negative = i.imm[0] && b != 0 && (a >> (b - 1) & 1);
  return negative ? a | upper : a & ~upper;
}

// imm: [0] and [1] a and b are signed, [2] the upper half of b.
uint32_t dot2(const Inst& i, uint32_t a, uint32_t b, uint32_t c) {
  for (int k = 0; k < 2; ++k) {
    const uint32_t x = a >> (16 * k) & 0xffff, y = b >> (8 * (k + 2 * i.imm[2])) & 0xff;
    const int64_t left = i.imm[0] ? static_cast<int16_t>(x) : static_cast<int64_t>(x);
    const int64_t right = i.imm[1] ? static_cast<int8_t>(y) : static_cast<int64_t>(y);
    c += static_cast<uint32_t>(left * right);
  }
  return c;
}

// imm: [0] signed, [1] the upper 32 of the product's 48 bits, [2] saturate the sum.
uint32_t multiply_24(const Inst& i, uint32_t a, uint32_t b, uint32_t c) {
  const auto low24 = [&](uint32_t x) -> int64_t {
    return i.imm[0] ? static_cast<int32_t>(x << 8) >> 8 : static_cast<int64_t>(x & 0xffffff);
  };
  const int64_t product = low24(a) * low24(b), part = i.imm[1] ? product >> 16 : product;
  if (!i.imm[2]) return static_cast<uint32_t>(part) + c;
  return static_cast<uint32_t>(std::clamp<int64_t>(part + static_cast<int32_t>(c), INT32_MIN, INT32_MAX));
}

// Operands: d or -1, p, a, b, c, q. imm: [0] the table, [1] and, not or, [2] q is negated.
void logic3_predicate(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  const uint32_t q = predicate(w, o[5]) ^ (i.imm[2] ? ~0u : 0);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    uint32_t out = 0;
    for (int bit = 0; bit < 32; ++bit) {
      uint32_t row = 0;
      for (int k = 0; k < 3; ++k) row = row << 1 | (get<uint32_t>(w, o[2 + k], lane) >> bit & 1);
      out |= static_cast<uint32_t>(i.imm[0] >> row & 1) << bit;
    }
    if (o[0] >= 0) set<uint32_t>(w, o[0], lane, out);
    const bool other = has(q, lane), result = i.imm[1] ? out != 0 && other : out != 0 || other;
    set_predicate(w, o[1], 1u << lane, result ? ~0u : 0);
  }
}

// The smaller or larger magnitude with the product of the signs. imm: [0] ftz, [1] NaN wins, [2] the larger.
template <class Decode, class Encode>
uint32_t magnitude(const Inst& i, uint32_t a, uint32_t b, Decode decode_one, Encode encode_one) {
  float x = decode_one(a), y = decode_one(b);
  if (i.imm[0]) x = flush(x), y = flush(y);
  const bool none = std::isnan(x) || std::isnan(y), both = std::isnan(x) && std::isnan(y);
  if (both || (none && i.imm[1])) return encode_one(NAN);
  const bool negative = std::signbit(x) != std::signbit(y);
  const float u = std::fabs(x), v = std::fabs(y);
  const float size = std::isnan(u) ? v : std::isnan(v) ? u : i.imm[2] ? std::max(u, v) : std::min(u, v);
  return encode_one(negative ? -size : size);
}

uint32_t magnitude_f32(const Inst& i, uint32_t a, uint32_t b) {
  const auto decode_one = [](uint32_t bits) { return static_cast<float>(decode(bits, f32)); };
  return magnitude(i, a, b, decode_one, [](float x) {
    uint32_t bits;
    x = canonical(x);
    std::memcpy(&bits, &x, 4);
    return bits;
  });
}

template <bool kIsHalf>
uint32_t magnitude_16(const Inst& i, uint32_t a, uint32_t b) {
  const auto decode_one = [](uint32_t bits) { return kIsHalf ? decode_half(bits) : decode_bfloat(bits); };
  return magnitude(i, a & 0xffff, b & 0xffff, decode_one,
                   [](float x) { return encode16(kIsHalf ? kHalf : kBfloat, x); });
}

template <bool kIsHalf>
void magnitudes(const std::string& type) {
  lanes_with<uint16_t, uint16_t, uint16_t>("xorsign." + type, [](const Inst& i, uint16_t a, uint16_t b) -> uint16_t {
    return magnitude_16<kIsHalf>(i, a, b);
  });
  lanes_with<uint32_t, uint32_t, uint32_t>("xorsign." + type + "x2", [](const Inst& i, uint32_t a, uint32_t b) {
    return magnitude_16<kIsHalf>(i, a, b) | magnitude_16<kIsHalf>(i, a >> 16, b >> 16) << 16;
  });
}

const bool registered = [] {
  using U = uint32_t;
  lanes<U, U, U, int32_t>("fns", [](U mask, U base, int32_t offset) { return find_nth(mask, base, offset); });
  lanes_with<U, U, U>("szext", [](const Inst& i, U a, U b) { return extend(i, a, b); });
  lanes_with<U, U, U, U>("dp2a", [](const Inst& i, U a, U b, U c) { return dot2(i, a, b, c); });
  lanes_with<U, U, U, U>("mad24", [](const Inst& i, U a, U b, U c) { return multiply_24(i, a, b, c); });
  lanes_with<U, U, U>("xorsign.f32", [](const Inst& i, U a, U b) { return magnitude_f32(i, a, b); });
  magnitudes<true>("f16"), magnitudes<false>("bf16");
  add("lop3.predicate", logic3_predicate);
  return true;
}();

}  // namespace
}  // namespace emu
