// Stable slot assignment: token i of expert e gets row offsets[e] + (tokens of e before i).
// Also a prefix sum over many blocks, each of which waits for the one before it.
#include <cuda_runtime.h>

#include <cub/block/block_scan.cuh>

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

__device__ int scan_warp(int value) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int below = __shfl_up_sync(kAllLanes, value, offset);
    if (lane >= offset) value += below;
  }
  return value;
}

struct ShuffleScan {
  struct Storage {
    int totals[kWarps];
  };

  __device__ static void exclusive(Storage& storage, int value, int& before) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int inclusive = scan_warp(value);
    if (lane == 31) storage.totals[warp] = inclusive;
    __syncthreads();  // every warp's total is there
    if (warp == 0) {
      const int totals = scan_warp(lane < kWarps ? storage.totals[lane] : 0);
      if (lane < kWarps) storage.totals[lane] = totals;
    }
    __syncthreads();  // and their prefix sum
    before = inclusive - value + (warp > 0 ? storage.totals[warp - 1] : 0);
  }
};

struct CubScan {
  using Scan = cub::BlockScan<int, kThreads>;
  using Storage = Scan::TempStorage;

  __device__ static void exclusive(Storage& storage, int value, int& before) {
    Scan(storage).ExclusiveSum(value, before);
  }
};

template <typename Scan>
__device__ void assign_slots(const int* experts_of, int tokens, int experts, int* offsets, int* slots) {
  __shared__ int counts[kWarps][kThreads];
  __shared__ typename Scan::Storage storage;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  for (int w = 0; w < kWarps; ++w) counts[w][thread] = 0;
  __syncthreads();  // the counts are zero

  const int share = (tokens + kThreads - 1) / kThreads * 32;  // tokens of one warp
  const int first = warp * share, last = min(tokens, first + share);
  for (int i = first + lane; i < last; i += 32) atomicAdd(&counts[warp][experts_of[i]], 1);
  __syncthreads();  // the counts are complete

  int total = 0, before;
  for (int w = 0; w < kWarps; ++w) total += counts[w][thread];
  Scan::exclusive(storage, total, before);
  if (thread < experts) offsets[thread + 1] = before + total;
  if (thread == 0) offsets[0] = 0;
  for (int w = 0; w < kWarps; ++w) {
    const int count = counts[w][thread];
    counts[w][thread] = before;
    before += count;
  }
  __syncthreads();  // counts[w][e] is now the next row of warp w for expert e

  for (int base = first; base < last; base += 32) {
    const int i = base + lane;
    const unsigned active = __ballot_sync(kAllLanes, i < last);
    if (i < last) {
      const int expert = experts_of[i];
      const unsigned same = __match_any_sync(active, expert);
      const int rank = __popc(same & ((1u << lane) - 1));
      const int next = counts[warp][expert];
      __syncwarp(active);  // all lanes have read the count
      if (rank == 0) counts[warp][expert] = next + __popc(same);
      slots[i] = next + rank;
    }
    __syncwarp();  // the counts are up to date for the next 32 tokens
  }
}

extern "C" __global__ void __launch_bounds__(kThreads)
    slots_by_shuffle(const int* __restrict__ experts_of, int tokens, int experts, int* __restrict__ offsets,
                     int* __restrict__ slots) {
  assign_slots<ShuffleScan>(experts_of, tokens, experts, offsets, slots);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    slots_by_cub(const int* __restrict__ experts_of, int tokens, int experts, int* __restrict__ offsets,
                 int* __restrict__ slots) {
  assign_slots<CubScan>(experts_of, tokens, experts, offsets, slots);
}

// Tiles are taken in the order in which blocks arrive, so that a block only ever waits for a
// block that already runs. ready[t] says that ends[t], the inclusive sum up to tile t, is there.
extern "C" __global__ void __launch_bounds__(kThreads)
    chained_scan(const int* __restrict__ values, int* __restrict__ sums, int count, int* next_tile, int* ends,
                 int* ready) {
  __shared__ ShuffleScan::Storage storage;
  __shared__ int tile, carry;
  if (threadIdx.x == 0) tile = atomicAdd(next_tile, 1);
  __syncthreads();  // the tile is known
  const int i = tile * kThreads + threadIdx.x;
  const int value = i < count ? values[i] : 0;
  int before;
  ShuffleScan::exclusive(storage, value, before);

  if (threadIdx.x == kThreads - 1) {
    int previous = 0;
    if (tile > 0) {
      while (atomicAdd(&ready[tile - 1], 0) == 0) {
      }
      __threadfence();
      previous = static_cast<volatile int*>(ends)[tile - 1];
    }
    ends[tile] = previous + before + value;
    __threadfence();
    atomicExch(&ready[tile], 1);
    carry = previous;
  }
  __syncthreads();  // the sum of all earlier tiles is known
  if (i < count) sums[i] = carry + before + value;
}
