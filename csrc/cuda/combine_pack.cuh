// Neighbouring elements of a row that a thread of combine moves at once, as floats and back.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace capmoe::cuda {

// What a thread adds at a time: 16 bytes where the rows are aligned to that, else one element.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T values[kWidth];
};

template <int kWidth>
__device__ __forceinline__ void widen(const Pack<float, kWidth>& in, float (&out)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) out[i] = in.values[i];
}

// The upper half of a float is a bfloat16: one instruction each, where the library's conversions take more.
template <int kWidth>
__device__ __forceinline__ void widen(const Pack<__nv_bfloat16, kWidth>& in, float (&out)[kWidth]) {
  if constexpr (kWidth == 1) {
    out[0] = __bfloat162float(in.values[0]);
  } else {
    const auto& pairs = reinterpret_cast<const uint32_t (&)[kWidth / 2]>(in);
#pragma unroll
    for (int i = 0; i < kWidth; i += 2) {
      asm("shl.b32 %0, %1, 16;" : "=f"(out[i]) : "r"(pairs[i / 2]));
      asm("and.b32 %0, %1, 0xffff0000;" : "=f"(out[i + 1]) : "r"(pairs[i / 2]));
    }
  }
}

template <int kWidth>
__device__ __forceinline__ void widen(const Pack<__half, kWidth>& in, float (&out)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) out[i] = __half2float(in.values[i]);
}

template <int kWidth>
__device__ __forceinline__ Pack<float, kWidth> narrow(const float (&in)[kWidth], float) {
  Pack<float, kWidth> out;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) out.values[i] = in[i];
  return out;
}

template <int kWidth>
__device__ __forceinline__ Pack<__nv_bfloat16, kWidth> narrow(const float (&in)[kWidth], __nv_bfloat16) {
  Pack<__nv_bfloat16, kWidth> out;
  if constexpr (kWidth == 1) {
    out.values[0] = __float2bfloat16_rn(in[0]);
  } else {
    auto& pairs = reinterpret_cast<__nv_bfloat162(&)[kWidth / 2]>(out);
#pragma unroll
    for (int i = 0; i < kWidth; i += 2) pairs[i / 2] = __floats2bfloat162_rn(in[i], in[i + 1]);
  }
  return out;
}

template <int kWidth>
__device__ __forceinline__ Pack<__half, kWidth> narrow(const float (&in)[kWidth], __half) {
  Pack<__half, kWidth> out;
  if constexpr (kWidth == 1) {
    out.values[0] = __float2half_rn(in[0]);
  } else {
    auto& pairs = reinterpret_cast<__half2(&)[kWidth / 2]>(out);
#pragma unroll
    for (int i = 0; i < kWidth; i += 2) pairs[i / 2] = __floats2half2_rn(in[i], in[i + 1]);
  }
  return out;
}

}  // namespace capmoe::cuda
