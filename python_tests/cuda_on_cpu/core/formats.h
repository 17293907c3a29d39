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
constexpr Format kE4m3{4, -6, 448.0L, 4};
constexpr Format kE5m2{3, -14, 57344.0L, 5};

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

// The exponent's bias is 112 less: a product with a power of two is exact, for subnormals, too.
inline float decode_half(uint16_t bits) {
  uint32_t wide = (bits & 0x7fffu) << 13;
  float out;
  std::memcpy(&out, &wide, 4);
  out *= 0x1p112f;
  std::memcpy(&wide, &out, 4);
  if ((bits & 0x7c00) == 0x7c00) wide = 0x7f800000u | (bits & 0x3ffu) << 13;
  wide |= (bits & 0x8000u) << 16;
  std::memcpy(&out, &wide, 4);
  return out;
}

inline float decode_bfloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

// e4m3 has no infinity: all ones is NaN, and the largest exponent holds numbers. e5m2 is the upper half of an f16.
inline float decode_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return NAN;
  const float size = exponent ? std::ldexp(8.0f + mantissa, exponent - 10) : std::ldexp(float(mantissa), -9);
  return bits & 0x80 ? -size : size;
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

template <class T>
T flush(T x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(T{0}, x) : x;
}

// A subnormal f16 or bf16 becomes a zero of its sign.
inline uint16_t flush16(const Format& f, uint16_t bits) {
  const uint16_t exponent = ((1 << f.exponent_bits) - 1) << (f.precision - 1);
  return bits & exponent ? bits : bits & 0x8000;
}

// As rules.py numbers them.
enum Type { u8, s8, u16, s16, u32, s32, u64, s64, f16, bf16, f32, f64, tf32, e4m3, e5m2, u4, s4 };

constexpr int bits_of(int type) {
  constexpr int table[] = {8, 8, 16, 16, 32, 32, 64, 64, 16, 16, 32, 64, 32, 8, 8, 4, 4};
  return table[type];
}

// The value of the low bits, which is exact.
inline long double decode(uint64_t bits, int type) {
  switch (type) {
    case u8:
      return static_cast<uint8_t>(bits);
    case s8:
      return static_cast<int8_t>(bits);
    case u16:
      return static_cast<uint16_t>(bits);
    case s16:
      return static_cast<int16_t>(bits);
    case u32:
      return static_cast<uint32_t>(bits);
    case s32:
      return static_cast<int32_t>(bits);
    case u64:
      return bits;
    case s64:
      return static_cast<int64_t>(bits);
    case f16:
      return decode_half(bits);
    case bf16:
      return decode_bfloat(bits);
    case e4m3:
      return decode_e4m3(bits);
    case e5m2:
      return decode_half(static_cast<uint16_t>(bits << 8));
    case u4:
      return bits & 15;
    case s4:
      return static_cast<int8_t>(bits << 4) >> 4;
    case f64: {
      double x;
      std::memcpy(&x, &bits, 8);
      return x;
    }
    default: {
      const uint32_t kept = type == tf32 ? bits & 0xffffe000 : bits;
      float x;
      std::memcpy(&x, &kept, 4);
      return x;
    }
  }
}

inline float canonical(float x) {
  if (!std::isnan(x)) return x;
  const uint32_t bits = 0x7fffffff;
  std::memcpy(&x, &bits, 4);
  return x;
}

}  // namespace emu
