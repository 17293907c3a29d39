// Logits and scores of one expert: cleaning, exponentials, sigmoid, and the order of logits as integers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cfloat>
#include <cstdint>

#include "../options.h"
#include "common.cuh"

namespace capmoe::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

// NaN forbids an expert as -inf does (fmaxf prefers the number), and +0 replaces -0.
__device__ __forceinline__ float forbid_nan(float logit) { return fmaxf(logit + 0.0f, -INFINITY); }

// +inf counts as the largest float.
__device__ __forceinline__ float clean_logit(float logit) { return fminf(forbid_nan(logit), FLT_MAX); }

// order_key() of a number that is neither NaN nor -0, and back.
__device__ __forceinline__ uint32_t to_key(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

__device__ __forceinline__ float from_key(uint32_t key) {
  return __uint_as_float(key ^ (~static_cast<uint32_t>(static_cast<int32_t>(key) >> 31) | 0x80000000u));
}

constexpr uint32_t kForbiddenKey = 0x007fffffu;  // to_key(-inf)

__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr float kLog2e = 1.44269502f;

// A summand of the softmax's denominator: small ones need no relative precision.
__device__ __forceinline__ float exp_summand(float x) { return exp2_approximate(x * kLog2e); }

// exp of x <= 0 to a few units of the last place: what the product's rounding loses is made good to first order.
__device__ __forceinline__ float exp_negative(float x) {
  constexpr float kLog2eRest = 1.92596303e-8f, kLn2 = 0.693147182f;
  x = fmaxf(x,
            -150.0f);  // below, exp is 0; -inf would make NaN of the correction
  const float product = x * kLog2e;
  const float lost = fmaf(x, kLog2eRest, fmaf(x, kLog2e, -product));
  const float power = exp2_approximate(product);
  return fmaf(power, lost * kLn2, power);
}

// a / b for a normal b > 0 whose reciprocal is normal too, within 2 units of the last place; exact for powers of two.
__device__ __forceinline__ float divide(float a, float b) {
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(b));
  return a * reciprocal;
}

__device__ __forceinline__ float sigmoid(float x) {
  const float power = exp_negative(-fabsf(x));
  return divide(x >= 0.0f ? 1.0f : power, 1.0f + power);
}

// What turns a logit into a score; `largest` and `sum` are the softmax's, over the row.
struct Scoring {
  bool is_sigmoid;
  float largest, sum;

  __device__ __forceinline__ float operator()(float logit) const {
    return is_sigmoid ? sigmoid(logit) : divide(exp_negative(logit - largest), sum);
  }
  // Another lane's, which has another row. By a whole warp.
  __device__ __forceinline__ Scoring of_lane(int lane) const {
    return {is_sigmoid, __shfl_sync(0xffffffffu, largest, lane), __shfl_sync(0xffffffffu, sum, lane)};
  }
};

// A column's weight, and what capacity ranks it by. `denominator` is the sum of the top-k's scores, or 1 where nothing
// is renormalised: by which division is exact.
struct Weighed {
  float weight, score;
};

__device__ __forceinline__ Weighed weigh(const Gate& config, float score, float denominator) {
  const float normalised = divide(score, denominator), weight = normalised * config.scaling;
  // The weight of `kept` is what select normalises.
  return {config.renormalize == Renormalize::kept ? score : weight, config.drop_by_weight ? normalised : score};
}

}  // namespace capmoe::cuda
