// Vectors of kLanes floats for one instruction set, with the functions the MLP needs of them.
//
// Before including this inside a target region define CAPMOE_LANES: 16 (AVX-512), 8 (AVX2 with FMA and F16C) or 4
// (whatever the compiler's default is). GCC's vector extensions do the arithmetic; intrinsics what they cannot say.
#pragma once

#include <cstdint>

#include "convert.h"
#include "grouped_mlp.h"

namespace capmoe::cpu {
namespace {

constexpr int kLanes = CAPMOE_LANES;
typedef float Vec __attribute__((vector_size(4 * CAPMOE_LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * CAPMOE_LANES)));

inline Vec load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof(v)); }

inline Vec splat(float x) { return Vec{} + x; }

// p * 2^n for whole n in [-151, 129]; rounds once, into subnormals too.
inline Vec scale(Vec p, Vec n, IntVec n_int) {
#if CAPMOE_LANES == 16
  (void)n_int;
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  (void)n;
  const IntVec low = n_int >> 1, high = n_int - low;  // 2^n alone may overflow
  return p * (Vec)((low + 127) << 23) * (Vec)((high + 127) << 23);
#endif
}

// e^x within 1 ulp of float32 (1 subnormal ulp below 2^-126); NaN stays NaN.
inline Vec exp(Vec x) {
  const Vec lowest = splat(-104.0f), highest = splat(89.0f);  // 0 below, inf above
  x = x < lowest ? lowest : x;
  x = x > highest ? highest : x;
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const Vec shifted = x * 1.44269504f + magic;
  const Vec n = shifted - magic;
  const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts; the first product is exact
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return scale(p, n, (IntVec)shifted - (IntVec)magic);
}

// erf(x) within 2 ulp (Juffa's polynomials).
inline Vec erf(Vec x) {
  const IntVec sign = (IntVec)x & INT32_MIN;
  const Vec t = (Vec)((IntVec)x & INT32_MAX);
  const Vec s = x * x;
  Vec r = t * -1.72853470e-5f + 3.83197126e-4f;
  const Vec u = t * -3.88396438e-3f + 2.42546219e-2f;
  r = r * s + u;
  r = r * t + -1.06777877e-1f;
  r = r * t + -6.34846687e-1f;
  r = r * t + -1.28717512e-1f;
  r = r * t - t;
  r = t > 4.0f ? splat(-20.0f) : r;  // 1 - e^-20 is 1; the polynomial would turn back up
  const Vec far = (Vec)((IntVec)(1.0f - exp(r)) | sign);
  Vec near = s * -5.96761703e-4f + 4.99119423e-3f;
  near = near * s + -2.67681349e-2f;
  near = near * s + 1.12819925e-1f;
  near = near * s + -3.76125336e-1f;
  near = near * s + 1.28379166e-1f;
  near = near * x + x;
  return t > 0.927734375f ? far : near;
}

// x / d for d of at least 1, within 2 ulp up to d = 1e38; beyond that, 0 of AVX-512.
inline Vec divide(Vec x, Vec d) {
#if CAPMOE_LANES == 16
  // A division takes as long as all of exp.
  const Vec rough = (Vec)_mm512_rcp14_ps((__m512)d);
  const Vec inverse = rough * (2.0f - d * rough);
  return x * (d > 1e38f ? Vec{} : inverse);
#else
  return x / d;
#endif
}

// x * sigmoid(a * x)
inline Vec swish(Vec x, float a) { return divide(x, exp(x * -a) + 1.0f); }

// plain(x), and gated(gate, up).
template <class Act>
struct Gating {
  static Vec gated(Vec gate, Vec up) { return Act::plain(gate) * up; }
};

struct Silu : Gating<Silu> {
  static Vec plain(Vec x) { return swish(x, 1.0f); }
};

struct Gelu : Gating<Gelu> {
  static Vec plain(Vec x) { return x * 0.5f * (erf(x * 0.707106781f) + 1.0f); }
};

struct GeluTanh : Gating<GeluTanh> {
  // (1 + tanh(u)) / 2 is sigmoid(2u).
  static Vec plain(Vec x) {
    const Vec u = (x * x * x * 0.044715f + x) * 1.59576912f;  // 2 * sqrt(2 / pi)
    return divide(x, exp(-u) + 1.0f);
  }
};

struct Relu : Gating<Relu> {
  static Vec plain(Vec x) { return x < 0.0f ? Vec{} : x; }
};

struct Relu2 : Gating<Relu2> {
  static Vec plain(Vec x) { return Relu::plain(x) * Relu::plain(x); }
};

struct SwigluOai {
  static Vec plain(Vec x) { return swish(x, 1.702f); }
  static Vec gated(Vec gate, Vec up) {
    const Vec limit = splat(7.0f);
    up = up > limit ? limit : up;
    up = up < -limit ? -limit : up;
    return (up + 1.0f) * plain(gate > limit ? limit : gate);
  }
};

template <class Body>
inline void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::silu:
      return body(Silu{});
    case Activation::gelu:
      return body(Gelu{});
    case Activation::gelu_tanh:
      return body(GeluTanh{});
    case Activation::swigluoai:
      return body(SwigluOai{});
    case Activation::relu:
      return body(Relu{});
    case Activation::relu2:
      return body(Relu2{});
  }
}

}  // namespace
}  // namespace capmoe::cpu

#include "simd_rows.h"
