// The threads that decide one budget together: a warp, or a whole block.
#pragma once

#include <cstdint>

namespace capmoe::cuda {

constexpr int kBins = 256;
constexpr uint32_t kWholeWarp = 0xffffffffu;

__device__ __forceinline__ int lane_id() { return threadIdx.x % 32; }

// The sum over this lane and those below it, within segments of `width` lanes, a power of two of at most kMost. A
// shuffle says itself whether there is such a lane.
template <int kMost = 32>
__device__ __forceinline__ int warp_inclusive_scan(int value, int width = 32) {
  const int bounds = (32 - width) << 8;
#pragma unroll
  for (int step = 1; step < kMost; step *= 2) {
    asm volatile(
        "{\n\t.reg .pred inside;\n\t.reg .s32 below;\n\t"
        "shfl.sync.up.b32 below|inside, %0, %1, %2, 0xffffffff;\n\t@inside add.s32 %0, %0, below;\n\t}"
        : "+r"(value)
        : "r"(step), "r"(bounds));
  }
  return value;
}

// The sum over segments of `width` lanes, a power of two.
__device__ __forceinline__ int warp_sum(int value, int width) {
  if (width == 32) return static_cast<int>(__reduce_add_sync(kWholeWarp, static_cast<unsigned>(value)));
#pragma unroll 1
  for (int step = width / 2; step > 0; step /= 2) value += __shfl_xor_sync(kWholeWarp, value, step);
  return value;
}

// The bits that all keys seen have, and those that any has.
struct KeyBits {
  uint32_t all = ~0u, any = 0;

  __device__ void add(uint32_t key) {
    all &= key;
    any |= key;
  }
  __device__ uint32_t differing() const { return all ^ any; }
};

// Shared memory of a block's teams.
struct TeamMemory {
  uint32_t *bins, *lists;  // [warps][kBins], [warps][listed]
  int listed;              // keys of those who ask that fit in a warp's list; a block's list is all of these
  int* partial;            // [2 * warps + 3]
};

// kWarps of them, and then all of the block's, or one.
template <int kWarps>
class Team {
 public:
  static constexpr int kSize = 32 * kWarps;
  static constexpr bool kWarp = kWarps == 1;

  uint32_t* bins;  // [kBins] of shared memory
  uint32_t* list;  // [listed]
  int listed;

  __device__ explicit Team(const TeamMemory& block) : listed(block.listed * kWarps), partial_(block.partial) {
    const int team = kWarp ? threadIdx.x / 32 : 0;
    bins = block.bins + team * kBins;
    list = block.lists + team * listed;
  }

  __device__ int rank() const { return kWarp ? lane_id() : threadIdx.x; }

  __device__ void sync() const {
    if (kWarp) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  __device__ int sum(int value) const {
    value = warp_sum(value, 32);
    if (kWarp) return value;
    __syncthreads();
    if (lane_id() == 0) partial_[threadIdx.x / 32] = value;
    __syncthreads();
    return warp_sum(of_each_warp(), 32);
  }

  // Of all members' keys.
  __device__ KeyBits combine(KeyBits bits) const {
    bits.all = __reduce_and_sync(kWholeWarp, bits.all);
    bits.any = __reduce_or_sync(kWholeWarp, bits.any);
    if (kWarp) return bits;
    __syncthreads();
    if (lane_id() == 0) {
      partial_[threadIdx.x / 32] = static_cast<int>(bits.all);
      partial_[kWarps + threadIdx.x / 32] = static_cast<int>(bits.any);
    }
    __syncthreads();
    bits.all = __reduce_and_sync(kWholeWarp, partial_[lane_id() % kWarps]);
    bits.any = __reduce_or_sync(kWholeWarp, partial_[kWarps + lane_id() % kWarps]);
    return bits;
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
    const int held = of_each_warp();
    *total += warp_sum(held, 32);
    return before + warp_sum(lane_id() < warp ? held : 0, 32);
  }

  // Gives everyone what the first warp has.
  __device__ int3 broadcast(int3 value) const {
    if (kWarp) return value;
    if (threadIdx.x == 0) {
      partial_[2 * kWarps] = value.x;
      partial_[2 * kWarps + 1] = value.y;
      partial_[2 * kWarps + 2] = value.z;
    }
    __syncthreads();
    return make_int3(partial_[2 * kWarps], partial_[2 * kWarps + 1], partial_[2 * kWarps + 2]);
  }

 private:
  // What warp `lane` has left, in that lane; 0 in those beyond.
  __device__ int of_each_warp() const { return lane_id() < kWarps ? partial_[lane_id()] : 0; }

  int* partial_;  // unused by a warp
};

}  // namespace capmoe::cuda
