// One launch of select: budgets, then tokens, with barriers of the whole grid between.
#pragma once

#include "grid_barrier.cuh"
#include "select_compete.cuh"
#include "select_rows.cuh"
#include "select_tokens.cuh"

namespace capmoe::cuda {

constexpr int kUnlimited = INT32_MAX;
constexpr int kFewExperts = 512;  // whose offsets a warp adds up

// Where offsets and a block's teams lie in dynamic shared memory, in words of four bytes.
struct SelectShape {
  int warps, listed;  // of the block; keys in a warp's list

  __host__ __device__ int offsets_words(int64_t experts) const { return static_cast<int>((experts + 4) / 4 * 4); }
  __host__ __device__ int64_t shared_bytes(int64_t experts) const {
    return 4 * (offsets_words(experts) + int64_t{warps} * (kBins + listed));
  }
};

// Asks of the next round, or none: out.rows says which pairs have asked so far. Without a token nobody has zeroed the
// counters, nor asks.
template <class Problem>
__device__ bool next_round(const Problem& problem, GridBarrier& barrier, int round, uint32_t& asked) {
  if (round >= problem.config.reroute_rounds || problem.tokens == 0) return false;
  ask_on(problem, round == 0);
  barrier.sync();
  const uint32_t before = asked;
  asked = *const_cast<volatile uint32_t*>(problem.marks.counters + kFreshAsks);
  return asked != before;
}

// Who is kept: slots and tokens_per_expert, as every block sees them.
template <int kWarps, class Problem>
__device__ __forceinline__ void decide(const TeamMemory& memory, const Problem& problem) {
  GridBarrier barrier(problem.marks.counters + kArrivals);
  int budget = problem.budget;
  if (problem.masked() && problem.tokens > 0) {
    read_mask(problem);
    barrier.sync();
    budget = problem.budget_of(*const_cast<volatile uint32_t*>(problem.marks.counters + kRealTokens));
  }
  int round = 0, bound = problem.reroutes() ? kUnlimited : budget;
  uint32_t asked = 0;
  bool more_rounds = problem.reroutes(), limit = problem.limits_tokens();
#pragma unroll 1
  for (bool first_time = true;; first_time = false) {
    decide_all<kWarps>(memory, problem, bound, first_time);
    barrier.sync();
    more_rounds = more_rounds && next_round(problem, barrier, round++, asked);
    if (more_rounds) {
      bound = budget;
    } else if (limit) {
      limit = false;
      bound = kUnlimited;
      limit_per_token(problem);
      barrier.sync();
    } else {
      return;
    }
  }
}

// All of select, by all threads of the grid, of kWarps a block. offsets [E + 1] are of shared memory.
template <int kWarps, class Problem>
__device__ __forceinline__ void select_tokens(const Problem& problem, const TeamMemory& memory, int* offsets) {
  decide<kWarps>(memory, problem);
  const int* counts = problem.out.tokens_per_expert;
  if (problem.experts > kFewExperts) {
    scan_offsets(Team<kWarps>(memory), problem, counts, offsets, [](int, int) {});
  } else if (threadIdx.x < 32) {
    scan_offsets(Team<1>(memory), problem, counts, offsets, [](int, int) {});
  }
  __syncthreads();
  finish_experts(problem, counts, offsets);
  finish_tokens(problem, offsets, problem.chunk * (kWarps / 8), [&](int expert, int word) {
    return problem.slots[static_cast<unsigned>(expert * problem.words + word)];
  });
}

template <int kWarps, class Problem>
__device__ __forceinline__ void select_in_shared_memory(const Problem& problem, int listed, void* shared) {
  __shared__ int partial[2 * kWarps + 3];
  const SelectShape shape{kWarps, listed};
  auto* offsets = static_cast<int*>(shared);
  auto* bins = reinterpret_cast<uint32_t*>(offsets + shape.offsets_words(problem.experts));
  select_tokens<kWarps>(problem, TeamMemory{bins, bins + kWarps * kBins, listed, partial}, offsets);
}

template <class Problem, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, 16 / kWarps)
    select_kernel(const __grid_constant__ Problem problem, int listed) {
  extern __shared__ uint4 select_memory[];
  select_in_shared_memory<kWarps>(problem, listed, select_memory);
}

}  // namespace capmoe::cuda
