// How the lanes of a warp share rows of logits, and the few things they do together.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../options.h"
#include "gate_sort.cuh"

namespace capmoe::cuda {

constexpr uint32_t kAllLanes = 0xffffffffu;

// kLanes neighbours own a row, kPerLane consecutive experts each: so a lower lane has lower experts. kColumns: how many
// columns a row of one lane has, none of them local candidates; 0 where that is known only when it runs.
template <int kLanes_, int kPerLane_, int kColumns_ = 0>
struct GateLayout {
  static constexpr int kLanes = kLanes_, kPerLane = kPerLane_, kColumns = kColumns_;
  static constexpr int kRows = 32 / kLanes;           // rows that a warp does at once
  static constexpr int kExperts = kLanes * kPerLane;  // places of a row, pads included
  static constexpr int kPlaces = kRows * kExperts;    // places of a warp

  static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
  static __device__ __forceinline__ int row() { return lane() / kLanes; }
  static __device__ __forceinline__ int lane_in_row() { return lane() % kLanes; }
  static __device__ __forceinline__ int first_expert() { return lane_in_row() * kPerLane; }

  static __device__ __forceinline__ int columns(const Gate& config) { return static_cast<int>(config.columns); }

  // The row that column `i` of all the warp's columns is of; `per_row` is columns().
  static __device__ __forceinline__ int row_of_column(int i, int per_row) {
    return static_cast<int>(divide(i + 0.5f, per_row));
  }

  // The lanes of this lane's row that come before it.
  static __device__ __forceinline__ uint32_t lower_lanes() {
    return ((1u << lane_in_row()) - 1) << (lane() - lane_in_row());
  }

  // The largest of a row's lanes, known to each of them.
  static __device__ __forceinline__ uint32_t largest(uint32_t x) {
    if constexpr (kLanes == 32) {
      return __reduce_max_sync(kAllLanes, x);
    } else {
#pragma unroll
      for (int step = 1; step < kLanes; step *= 2) x = max(x, __shfl_xor_sync(kAllLanes, x, step));
      return x;
    }
  }

  // Sums over the row; of neighbours first, so that the bits do not depend on how lanes share a row.
  template <class Number>
  static __device__ __forceinline__ Number sum(Number x) {
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) x += __shfl_xor_sync(kAllLanes, x, step);
    return x;
  }
  static __device__ __forceinline__ float sum_places(float (&x)[kPerLane]) {
#pragma unroll
    for (int step = 1; step < kPerLane; step *= 2) {
#pragma unroll
      for (int i = 0; i < kPerLane; i += 2 * step) x[i] += x[i + step];
    }
    return sum(x[0]);
  }
};

constexpr int64_t kMaxGateExperts = 512;  // that a layout can hold

// Calls body(layout) with the layout for so many experts.
template <class Body>
void with_gate_layout(const Gate& config, Body body) {
  const int64_t experts = config.num_experts;
  if (experts <= 8) {
    // Two columns need no more than the best two of each lane.
    if (config.columns == 2 && config.expand != Expand::local) return body(GateLayout<1, 8, 2>{});
    return body(GateLayout<1, 8>{});
  }
  if (experts <= 16) return body(GateLayout<2, 8>{});
  if (experts <= 32) return body(GateLayout<4, 8>{});
  if (experts <= 64) return body(GateLayout<8, 8>{});
  if (experts <= 128) return body(GateLayout<16, 8>{});
  if (experts <= 256) return body(GateLayout<32, 8>{});
  if (experts <= kMaxGateExperts) return body(GateLayout<32, 16>{});
  throw std::invalid_argument("no layout of the gate holds " + std::to_string(experts) + " experts");
}

}  // namespace capmoe::cuda
