// Rounding to any binary floating-point format, by PTX's modes, through x87's 64-bit significands.
#pragma once

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emu {

enum Rounding { kNearest, kZero, kDown, kUp, kNearestAway };

struct Format {
  int precision;  // bits of the significand, the hidden one too
  int min_exponent;
  long double largest;
  int exponent_bits;
};

constexpr Format kHalf{11, -14, 65504.0L, 5};
constexpr Format kBfloat{8, -126, 0x1.fep127L, 8};
constexpr Format kSingle{24, -126, 0x1.fffffep127L, 8};
constexpr Format kDouble{53, -1022, 0x1.fffffffffffffp1023L, 11};
constexpr Format kTf32{11, -126, 0x1.ffcp127L, 8};

inline long double to_integral(long double x, int mode) {
  switch (mode) {
    case kZero:
      return truncl(x);
    case kDown:
      return floorl(x);
    case kUp:
      return ceill(x);
    case kNearestAway:
      return roundl(x);
    default:
      return nearbyintl(x);
  }
}

inline long double round_to(const Format& f, long double x, int mode) {
  if (x == 0 || std::isnan(x) || std::isinf(x)) return x;
  const int exponent = std::max(ilogbl(x), f.min_exponent) - (f.precision - 1);
  const long double rounded = ldexpl(to_integral(ldexpl(x, -exponent), mode), exponent);
  if (fabsl(rounded) <= f.largest) return rounded == 0 ? copysignl(0, x) : rounded;
  const bool to_largest = mode == kZero || (mode == kDown && x > 0) || (mode == kUp && x < 0);
  return copysignl(to_largest ? f.largest : static_cast<long double>(INFINITY), x);
}

// Bits of a value that `f` holds exactly; NaN is the canonical one.
inline uint32_t encode16(const Format& f, long double x) {
  if (std::isnan(x)) return 0x7fff;
  const float single = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  if (f.exponent_bits == 8) return bits >> 16;
  const _Float16 half = static_cast<_Float16>(single);
  uint16_t out;
  std::memcpy(&out, &half, 2);
  return out;
}

inline float decode_half(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return half;
}

inline float decode_bfloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

// A result that a second rounding cannot spoil: cut off, with the last bit telling that something was.
template <class F>
long double to_odd(F f) {
  const int old = fegetround();
  fesetround(FE_TOWARDZERO);
  feclearexcept(FE_INEXACT);
  volatile long double result = f();
  const bool inexact = fetestexcept(FE_INEXACT);
  fesetround(old);
  long double out = result;
  if (inexact) {
    uint64_t significand;
    std::memcpy(&significand, &out, 8);
    significand |= 1;
    std::memcpy(&out, &significand, 8);
  }
  return out;
}

inline float canonical(float x) {
  if (!std::isnan(x)) return x;
  const uint32_t bits = 0x7fffffff;
  std::memcpy(&x, &bits, 4);
  return x;
}

}  // namespace emu
