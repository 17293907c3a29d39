// What happens to a warp's sums before they are rounded. Formulas: capmoe_kernels/reference/grouped_mlp.py.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "../options.h"

namespace capmoe::cuda {

constexpr int kNoActivation = -1, kAnyActivation = -2;  // else an Activation

// 32 bits of neighbouring columns, rounded to T.
__device__ __forceinline__ uint32_t pack(const float (&v)[1], float) { return __float_as_uint(v[0]); }
__device__ __forceinline__ uint32_t pack(const float (&v)[2], __nv_bfloat16) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(v[0], v[1]);
  return reinterpret_cast<const uint32_t&>(both);
}
__device__ __forceinline__ uint32_t pack(const float (&v)[2], __half) {
  const __half2 both = __floats2half2_rn(v[0], v[1]);
  return reinterpret_cast<const uint32_t&>(both);
}

// x / (1 + exp(-z)). What float32 keeps of it, 16-bit outputs need not.
template <class T>
__device__ __forceinline__ float times_sigmoid(float x, float z) {
  if constexpr (std::is_same_v<T, float>) {
    return x / (1.0f + expf(-z));
  } else {
    constexpr float kLog2E = 1.4426950408889634f;
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-kLog2E * z));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
    return x * inverse;
  }
}

// Gated, values[j] are a gate's and values[j + 1] its up's (j even), and the results come to values[j]. Else every
// value is an up's, and its result takes its place. Comparisons are written for NaN to stay NaN.
template <class T, bool kGated, int kGroups, int kPack>
__device__ __forceinline__ void activate(int activation, float (&values)[kGroups][kPack]) {
  const auto apply = [&](auto function) {
#pragma unroll
    for (int j = 0; j < kGroups; j += kGated ? 2 : 1) {
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        values[j][c] = function(values[j][c]);
        if constexpr (kGated) values[j][c] *= values[j + 1][c];
      }
    }
  };
  if (kGated && activation == static_cast<int>(Activation::swigluoai)) {
    constexpr float kAlpha = 1.702f, kLimit = 7.0f;
#pragma unroll
    for (int j = 0; j < kGroups; j += 2) {
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        const float gate = values[j][c] > kLimit ? kLimit : values[j][c];
        float up = values[j + 1][c] > kLimit ? kLimit : values[j + 1][c];
        up = up < -kLimit ? -kLimit : up;
        values[j][c] = (up + 1.0f) * times_sigmoid<T>(gate, kAlpha * gate);
      }
    }
  } else if (activation == static_cast<int>(Activation::silu)) {
    apply([](float x) { return times_sigmoid<T>(x, x); });
  } else if (activation == static_cast<int>(Activation::gelu_tanh)) {
    // (1 + tanh(z)) / 2 is the sigmoid of 2z.
    constexpr float kTwice = 1.5957691216057308f;  // 2 sqrt(2 / pi)
    apply([](float x) { return times_sigmoid<T>(x, kTwice * (x + 0.044715f * x * x * x)); });
  } else if (activation == static_cast<int>(Activation::gelu)) {
    constexpr float kRootHalf = 0.7071067811865476f;
    apply([](float x) { return 0.5f * x * (1.0f + erff(kRootHalf * x)); });
  } else if (activation == static_cast<int>(Activation::relu)) {
    apply([](float x) { return x < 0.0f ? 0.0f : x; });
  } else if (activation == static_cast<int>(Activation::relu2)) {
    apply([](float x) { return x < 0.0f ? 0.0f : x * x; });
  }
}

}  // namespace capmoe::cuda
