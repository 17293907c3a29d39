// One launch of select: budgets, then tokens, with barriers of the whole grid between.
#pragma once

#include "grid_barrier.cuh"
#include "select_compete.cuh"
#include "select_rows.cuh"

namespace capmoe::cuda {

constexpr int64_t kUnlimited = INT64_MAX;
constexpr int kFewExperts = 512;  // whose offsets a warp adds up

// Where warps decide, a block has eight; else it is one team.
__host__ __device__ constexpr int select_threads(int team_warps) { return team_warps == 1 ? 256 : 32 * team_warps; }

// Keys of an expert that fit in a team's shared memory.
__host__ __device__ constexpr int listed_keys(int team_warps) {
  return team_warps == 1 ? 512 : team_warps < 16 ? 4096 : 10240;
}

// Asks of the next round, or none: out.rows says which pairs have asked so far. Without a token nobody has zeroed the
// counters, nor asks.
template <class Problem>
__device__ bool next_round(const Problem& problem, GridBarrier& barrier, int64_t round, uint32_t& asked) {
  if (round >= problem.config.reroute_rounds || problem.tokens == 0) return false;
  ask_on(problem, round == 0);
  barrier.sync();
  const uint32_t before = asked;
  asked = *const_cast<volatile uint32_t*>(problem.marks.counters + kFreshAsks);
  return asked != before;
}

// Who is kept: slots and tokens_per_expert, as every block sees them.
template <class Team, class Problem>
__device__ void decide(const Team& team, const Problem& problem) {
  GridBarrier barrier(problem.marks.counters + kArrivals);
  int64_t real = problem.tokens;
  if (problem.token_mask != nullptr && real > 0) {
    read_mask(problem);
    barrier.sync();
    real = *const_cast<volatile uint32_t*>(problem.marks.counters + kRealTokens);
  }
  const int64_t budget = capacity_of(problem.config, real) * problem.unit;
  int64_t round = 0, bound = problem.reroutes() ? kUnlimited : budget;
  uint32_t asked = 0;
  bool more_rounds = problem.reroutes(), limit = problem.limits_tokens();
#pragma unroll 1
  for (bool first_time = true;; first_time = false) {
    decide_all(team, problem, bound, first_time);
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

// All of select, by all threads of the grid. offsets [E + 1] are of shared memory.
template <int kTeamWarps, class Problem>
__device__ __forceinline__ void select_tokens(const Problem& problem, const TeamMemory& memory, int* offsets) {
  decide(Team<kTeamWarps>(memory), problem);
  constexpr int kBlockWarps = select_threads(kTeamWarps) / 32;
  const int* counts = problem.out.tokens_per_expert;
  if (problem.experts > kFewExperts) {
    scan_offsets(Team<kBlockWarps>(memory), problem, counts, offsets);
  } else if (threadIdx.x < 32) {
    scan_offsets(Team<1>(memory), problem, counts, offsets);
  }
  __syncthreads();
  finish_experts(problem, counts, offsets);
  finish_tokens(problem, offsets, chunk_tokens(blockDim.x, problem.columns),
                [&](int expert, int word) { return problem.slots[problem.word(expert, word)]; });
}

template <int kTeamWarps, class Problem>
__device__ __forceinline__ void select_in_static_memory(const Problem& problem, int* offsets) {
  constexpr int kTeams = select_threads(kTeamWarps) / (32 * kTeamWarps), kListed = listed_keys(kTeamWarps);
  __shared__ uint32_t bins[kTeams * kBins], lists[kTeams * kListed];
  __shared__ int partial[select_threads(kTeamWarps) / 32 + 3];
  select_tokens<kTeamWarps>(problem, TeamMemory{bins, lists, kListed, partial}, offsets);
}

template <class Id, int kTeamWarps>
__global__ void __launch_bounds__(select_threads(kTeamWarps), 2)
    select_kernel(const __grid_constant__ SelectProblem<Id> problem) {
  extern __shared__ int offsets[];  // [E + 1]
  select_in_static_memory<kTeamWarps>(problem, offsets);
}

}  // namespace capmoe::cuda
