// select where nothing bounds the experts and their marks are few: every block counts all of them for itself, so that
// none waits for another.
#pragma once

#include "select_number.cuh"
#include "select_rows.cuh"

namespace capmoe::cuda {

constexpr int kApartThreads = 256;
constexpr int kApartWords = 4;  // of tokens that are a block's own; a lane takes as many of a row
constexpr int kApartTokens = 32 * kApartWords;

// Shared memory of a block.
struct ApartMemory {
  SlotWord* slots;  // [E][kApartWords]
  int* counts;      // [E]
  int* offsets;     // [E + 1]

  __host__ __device__ static size_t bytes(int64_t experts) {
    return experts * (kApartWords * sizeof(SlotWord) + 2 * sizeof(int)) + sizeof(int);
  }
  __device__ ApartMemory(void* memory, int experts) : slots(static_cast<SlotWord*>(memory)) {
    counts = reinterpret_cast<int*>(slots + experts * kApartWords);
    offsets = counts + experts;
  }
};

// Counts kAtOnce groups of rows, `stride` experts apart, by one warp: `lanes` lanes of it share a row.
template <int kAtOnce, class Problem>
__device__ __forceinline__ void count_rows(const Problem& problem, const ApartMemory& memory, int first, int stride,
                                           int lanes) {
  const int place = lane_id() & (lanes - 1), words = problem.words, own = blockIdx.x * kApartWords;
  const bool counts_demand = blockIdx.x == 0 && problem.marks.top != nullptr;
  int total[kAtOnce] = {}, demand[kAtOnce] = {};
#pragma unroll 1
  for (int start = 4 * place; start - 4 * place < words; start += 4 * lanes) {
    uint32_t asks[kAtOnce][4], top[4];
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int expert = first + r * stride;
      load_words(problem.marks.asks + problem.word(expert, 0), start, expert < problem.experts ? words : 0, asks[r]);
    }
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int expert = first + r * stride;
      const int held = __popc(asks[r][0]) + __popc(asks[r][1]) + __popc(asks[r][2]) + __popc(asks[r][3]);
      const int through = warp_inclusive_scan(held, lanes);
      int before = total[r] + through - held;
      total[r] += __shfl_sync(kWholeWarp, through, lanes - 1, lanes);
      if (start == own && expert < problem.experts) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          memory.slots[expert * kApartWords + i] = {asks[r][i], static_cast<uint32_t>(before)};
          before += __popc(asks[r][i]);
        }
      }
      if (!counts_demand) continue;
      load_words(problem.marks.top + problem.word(expert, 0), start, expert < problem.experts ? words : 0, top);
#pragma unroll
      for (int i = 0; i < 4; ++i) demand[r] += __popc(asks[r][i] & top[i]);
    }
  }
#pragma unroll
  for (int r = 0; r < kAtOnce; ++r) {
    const int expert = first + r * stride;
    if (counts_demand) {
      for (int step = lanes / 2; step > 0; step /= 2) demand[r] += __shfl_xor_sync(kWholeWarp, demand[r], step);
    }
    if (place != 0 || expert >= problem.experts) continue;
    memory.counts[expert] = total[r];
    if (blockIdx.x != 0) continue;
    problem.out.tokens_per_expert[expert] = total[r];
    problem.out.demand_per_expert[expert] = counts_demand ? demand[r] : total[r];
  }
}

template <class Problem>
__device__ __forceinline__ void select_apart(const Problem& problem, void* shared) {
  const ApartMemory memory(shared, problem.experts);
  constexpr int kAtOnce = 4;  // loads in flight
  const int lanes = lanes_per_row(problem.words), each = 32 / lanes, warps = kApartThreads / 32;
#pragma unroll 1
  for (int first = threadIdx.x / 32 * each; first < problem.experts; first += kAtOnce * warps * each) {
    count_rows<kAtOnce>(problem, memory, first + lane_id() / lanes, warps * each, lanes);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    scan_offsets(Team<1>(TeamMemory{}), problem, memory.counts, memory.offsets);
  }
  __syncthreads();
  finish_experts(problem, memory.counts, memory.offsets);
  finish_tokens(problem, memory.offsets, kApartTokens,
                [&](int expert, int word) { return memory.slots[expert * kApartWords + word % kApartWords]; });
}

template <class Id>
__global__ void __launch_bounds__(kApartThreads, 2)
    select_apart_kernel(const __grid_constant__ SelectProblem<Id> problem) {
  extern __shared__ uint4 apart_memory[];
  select_apart(problem, apart_memory);
}

}  // namespace capmoe::cuda
