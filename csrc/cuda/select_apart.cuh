// select where nothing bounds the experts and their marks are few: every block counts all of them for itself, so that
// none waits for another.
#pragma once

#include <algorithm>

#include "select_number.cuh"
#include "select_rows.cuh"

namespace capmoe::cuda {

constexpr int kApartThreads = 512;  // at most

// What the host chooses for tokens that come in `words` words: the block's threads, and the words that are its own.
struct ApartShape {
  int threads, own_words;

  ApartShape(int64_t words, int64_t columns, int64_t experts) {
    const int64_t pairs = 32 * words * columns, marks = experts * words;
    const int64_t warps = std::max((pairs + 127) / 128, (marks + 511) / 512);
    threads = static_cast<int>(32 * std::min<int64_t>(kApartThreads / 32, warps));
    const int64_t own = kPairsPerThread * threads / (32 * std::max<int64_t>(columns, 1));
    own_words = own < 8 ? 4 : own < 16 ? 8 : 16;                         // so that a lane's four words are one block's
    while (own_words > 4 && experts * own_words > 4096) own_words /= 2;  // which fit without being asked for
    threads =
        static_cast<int>(std::min<int64_t>(threads, (own_words * 8 * std::max<int64_t>(columns, 4) + 31) / 32 * 32));
  }
  int64_t shared_bytes(int64_t experts) const {
    return experts * (own_words * sizeof(SlotWord) + 3 * sizeof(int)) + sizeof(int);
  }
};

// Shared memory of a block.
struct ApartMemory {
  SlotWord* slots;  // [own words][E]: `before` counts from the block's first word on
  int* counts;      // [E]
  int* starts;      // [E]: tokens before that word, then the row of the first token in it
  int* offsets;     // [E + 1]
  int first, own;   // the words that are the block's

  __device__ ApartMemory(void* memory, int experts, int own)
      : slots(static_cast<SlotWord*>(memory)), first(blockIdx.x * own), own(own) {
    counts = reinterpret_cast<int*>(slots + experts * own);
    starts = counts + experts;
    offsets = starts + experts;
  }
};

// A lane's four words of one row, which are the block's own: `held` bits are set in them.
template <class Problem>
__device__ __forceinline__ void keep_slots(const Problem& problem, const ApartMemory& memory, int expert, int place,
                                           const uint32_t (&asks)[4], int before) {
  SlotWord* slot = memory.slots + place * problem.experts + expert;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    *slot = {asks[i], static_cast<uint32_t>(before)};
    before += __popc(asks[i]);
    slot += problem.experts;
  }
}

// Counts kAtOnce groups of rows, `stride` experts apart, by one warp: `lanes` lanes of it share a row.
template <int kAtOnce, class Problem>
__device__ __forceinline__ void count_rows(const Problem& problem, const ApartMemory& memory, int first, int stride,
                                           int lanes) {
  const int words = problem.words, own_lanes = memory.own / 4;
  const bool counts_demand = blockIdx.x == 0 && problem.marks.top != nullptr;
  int sums[kAtOnce] = {}, demand[kAtOnce] = {};  // a sum: all tokens, and above 16 bits those before the own words
#pragma unroll 1
  for (int start = 4 * (lane_id() & (lanes - 1)), begin = 0; begin < words; begin += 4 * lanes, start += 4 * lanes) {
    uint32_t asks[kAtOnce][4];
    int held[kAtOnce];
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int expert = first + r * stride;
      load_words(problem.marks.asks + problem.word(expert, 0), start, expert < problem.experts ? words : 0, asks[r]);
    }
    const int weight = start < memory.first ? 0x10001 : 1;
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      held[r] = __popc(asks[r][0]) + __popc(asks[r][1]) + __popc(asks[r][2]) + __popc(asks[r][3]);
      sums[r] += held[r] * weight;
    }
    if (memory.first < begin + 4 * lanes && memory.first + memory.own > begin) {  // for all lanes alike
      const int place = start - memory.first;
      const bool is_own = static_cast<unsigned>(place) < static_cast<unsigned>(memory.own);
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        const int before = own_lanes == 1 ? 0 : warp_inclusive_scan<4>(held[r], own_lanes) - held[r];
        const int expert = first + r * stride;
        if (is_own && expert < problem.experts) keep_slots(problem, memory, expert, place, asks[r], before);
      }
    }
    if (!counts_demand) continue;
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int expert = first + r * stride;
      uint32_t top[4];
      load_words(problem.marks.top + problem.word(expert, 0), start, expert < problem.experts ? words : 0, top);
#pragma unroll
      for (int i = 0; i < 4; ++i) demand[r] += __popc(asks[r][i] & top[i]);
    }
  }
#pragma unroll
  for (int r = 0; r < kAtOnce; ++r) {
    const int expert = first + r * stride;
    const uint32_t sum = warp_sum(sums[r], lanes);
    const int total = sum & 0xffff, wanted = counts_demand ? warp_sum(demand[r], lanes) : total;
    if ((lane_id() & (lanes - 1)) != 0 || expert >= problem.experts) continue;
    memory.counts[expert] = total;
    memory.starts[expert] = sum >> 16;
    if (blockIdx.x != 0) continue;
    problem.out.tokens_per_expert[expert] = total;
    problem.out.demand_per_expert[expert] = wanted;
  }
}

template <class Problem>
__device__ __forceinline__ void select_apart(const Problem& problem, int own_words, void* shared) {
  const ApartMemory memory(shared, problem.experts, own_words);
  const int lanes_log = row_lanes_log(problem.words), lanes = 1 << lanes_log;
  const int stride = blockDim.x >> lanes_log, own = threadIdx.x >> lanes_log;
  if (problem.experts <= stride) {
    if (static_cast<int>((threadIdx.x & ~31u) >> lanes_log) < problem.experts) {
      count_rows<1>(problem, memory, own, stride, lanes);
    }
  } else {
    constexpr int kAtOnce = 4;  // loads in flight
#pragma unroll 1
    for (int start = 0; start < problem.experts; start += kAtOnce * stride) {
      count_rows<kAtOnce>(problem, memory, start + own, stride, lanes);
    }
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    scan_offsets(Team<1>(TeamMemory{}), problem, memory.counts, memory.offsets,
                 [&](int expert, int offset) { memory.starts[expert] += offset; });
  }
  __syncthreads();
  finish_experts(problem, memory.counts, memory.offsets);
  finish_tokens(problem, memory.starts, 32 * own_words,
                [&](int expert, int word) { return memory.slots[(word - memory.first) * problem.experts + expert]; });
}

template <class Id>
__global__ void __launch_bounds__(kApartThreads, 1)
    select_apart_kernel(const __grid_constant__ SelectProblem<Id> problem, int own_words) {
  extern __shared__ uint4 apart_memory[];
  select_apart(problem, own_words, apart_memory);
}

}  // namespace capmoe::cuda
