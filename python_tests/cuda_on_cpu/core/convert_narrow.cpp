// cvt to and from pairs of 8-bit floats, and cvt.pack.
#include <algorithm>

#include "formats.h"
#include "lanes.h"

namespace emu {
namespace {

// Always .satfinite: what is too large, infinities too, becomes the largest number; NaN is all ones.
uint32_t encode_float8(float x, int type, bool relu) {
  if (std::isnan(x)) return 0x7f;
  if (relu && x <= 0) return 0;
  const Format& f = type == e4m3 ? kE4m3 : kE5m2;
  long double y = round_to(f, x, kNearest);
  if (std::isinf(y)) y = copysignl(f.largest, y);
  const uint32_t sign = std::signbit(y) ? 0x80 : 0;
  const int bits = f.precision - 1, exponent = y == 0 ? 0 : std::max(ilogbl(y), f.min_exponent);
  const auto significand = static_cast<uint32_t>(ldexpl(fabsl(y), bits - exponent));
  if (y == 0 || significand < 1u << bits) return sign | (y == 0 ? 0 : significand);
  return sign | ((static_cast<uint32_t>(exponent - f.min_exponent) << bits) + significand);  // with the hidden bit
}

// imm: [0] the 8-bit type, [1] relu. Operands: d, the upper, the lower.
uint32_t pair_of_floats(const Inst& i, float high, float low) {
  return encode_float8(high, i.imm[0], i.imm[1]) << 8 | encode_float8(low, i.imm[0], i.imm[1]);
}

uint32_t pair_of_halves(const Inst& i, uint32_t halves) {
  return pair_of_floats(i, decode_half(halves >> 16), decode_half(halves & 0xffff));
}

uint32_t halves_of_pair(const Inst& i, uint32_t pair) {
  const auto one = [&](uint32_t bits) -> uint32_t {
    const float x = decode(bits, i.imm[0]);
    return i.imm[1] && x <= 0 ? 0 : encode16(kHalf, x);
  };
  return one(pair >> 8 & 0xff) << 16 | one(pair & 0xff);
}

// imm: [0] bits of a part, [1] parts are signed. The lower two parts are b and a, then c's.
uint32_t pack(const Inst& i, uint32_t a, uint32_t b, uint32_t c) {
  const int bits = i.imm[0];
  const int64_t low = i.imm[1] ? -(1ll << (bits - 1)) : 0, high = (1ll << (bits - i.imm[1])) - 1;
  const auto part = [&](uint32_t x) {
    return static_cast<uint64_t>(std::clamp<int64_t>(static_cast<int32_t>(x), low, high)) & ((1ull << bits) - 1);
  };
  return static_cast<uint32_t>(static_cast<uint64_t>(c) << 2 * bits | part(a) << bits | part(b));
}

const bool registered = [] {
  lanes_with<uint16_t, float, float>(
      "cvt.float8.f32", [](const Inst& i, float a, float b) -> uint16_t { return pair_of_floats(i, a, b); });
  lanes_with<uint16_t, uint32_t>("cvt.float8.f16x2",
                                 [](const Inst& i, uint32_t a) -> uint16_t { return pair_of_halves(i, a); });
  lanes_with<uint32_t, uint16_t>("cvt.f16x2.float8", [](const Inst& i, uint16_t a) { return halves_of_pair(i, a); });
  lanes_with<uint32_t, uint32_t, uint32_t, uint32_t>(
      "cvt.pack", [](const Inst& i, uint32_t a, uint32_t b, uint32_t c) { return pack(i, a, b, c); });
  return true;
}();

}  // namespace
}  // namespace emu
