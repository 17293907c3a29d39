// 16-bit floats to float32 and back, rounding to nearest even; NaN stays NaN.
#pragma once

#include <cstring>

#include "kernels.h"

namespace capmoe::cpu {

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }

inline float to_float(Half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00) return bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // A half is a float with a bias of 15, not 127; the product is exact for subnormals too.
  const float scaled = bit_cast<float>(magnitude << 13) * bit_cast<float>(uint32_t{254 - 15} << 23);
  return bit_cast<float>(sign | bit_cast<uint32_t>(scaled));
}

template <class T>
T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

template <>
inline BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}

template <>
inline Half from_float<Half>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = bit_cast<float>(bits & 0x7fffffffu);
  if (x != x) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 6.103515625e-05f) {
    // Adding 0.5 makes the float adder round at the subnormal half's last bit, 2^-24.
    const uint32_t rounded = bit_cast<uint32_t>(magnitude + 0.5f) - bit_cast<uint32_t>(0.5f);
    return {static_cast<uint16_t>(sign | rounded)};
  }
  const uint32_t m = bits & 0x7fffffffu;
  const uint32_t rounded = m + 0xfffu + ((m >> 13) & 1);
  return {static_cast<uint16_t>(sign | ((rounded - (uint32_t{112} << 23)) >> 13))};
}

}  // namespace capmoe::cpu
