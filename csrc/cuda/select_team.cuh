// The threads that decide one budget together: a warp, or a whole block.
#pragma once

#include <cstdint>

namespace capmoe::cuda {

constexpr int kBins = 256;
constexpr uint32_t kWholeWarp = 0xffffffffu;

__device__ __forceinline__ int lane_id() { return threadIdx.x % 32; }

// The sum over this lane and those below it, within segments of `width` lanes.
__device__ __forceinline__ int warp_inclusive_scan(int value, int width = 32) {
  const int place = lane_id() & (width - 1);
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(kWholeWarp, value, step, 32);
    if (place >= step) value += below;
  }
  return value;
}

// Shared memory of a block's teams.
struct TeamMemory {
  uint32_t *bins, *lists;  // [teams][kBins], [teams][listed]
  int listed;
  int* partial;  // [warps + 3]
};

template <int kWarps>
class Team {
 public:
  static constexpr int kSize = 32 * kWarps;
  static constexpr bool kWarp = kWarps == 1;

  uint32_t* bins;  // [kBins] of shared memory
  uint32_t* list;  // [listed], for the keys of those who ask
  int listed;

  __device__ explicit Team(const TeamMemory& block) : listed(block.listed), partial_(block.partial) {
    const int team = threadIdx.x / kSize;
    bins = block.bins + team * kBins;
    list = block.lists + team * listed;
  }

  __device__ int rank() const { return threadIdx.x % kSize; }

  __device__ void sync() const {
    if (kWarp) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  __device__ int sum(int value) const {
    value = static_cast<int>(__reduce_add_sync(kWholeWarp, static_cast<unsigned>(value)));
    if (kWarp) return value;
    __syncthreads();
    if (lane_id() == 0) partial_[threadIdx.x / 32] = value;
    __syncthreads();
    int total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += partial_[w];
    return total;
  }

  // The sum over lower ranks and *total; adds the sum over all to *total.
  __device__ int exclusive_scan(int value, int* total) const {
    const int inclusive = warp_inclusive_scan(value);
    int before = *total + inclusive - value;
    if (kWarp) {
      *total += __shfl_sync(kWholeWarp, inclusive, 31);
      return before;
    }
    const int warp = threadIdx.x / 32;
    __syncthreads();
    if (lane_id() == 31) partial_[warp] = inclusive;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const int held = partial_[w];
      if (w < warp) before += held;
      *total += held;
    }
    return before;
  }

  // Gives everyone what lane `lane` of the first warp has.
  __device__ int3 broadcast(int3 value, int lane) const {
    if (kWarp) {
      return make_int3(__shfl_sync(kWholeWarp, value.x, lane), __shfl_sync(kWholeWarp, value.y, lane),
                       __shfl_sync(kWholeWarp, value.z, lane));
    }
    if (static_cast<int>(threadIdx.x) == lane) {
      partial_[kWarps] = value.x;
      partial_[kWarps + 1] = value.y;
      partial_[kWarps + 2] = value.z;
    }
    __syncthreads();
    return make_int3(partial_[kWarps], partial_[kWarps + 1], partial_[kWarps + 2]);
  }

 private:
  int* partial_;  // unused by a warp
};

}  // namespace capmoe::cuda
