// What an expert, or a device's experts, keep: counted first, and decided only where too many ask.
#pragma once

#include "select_best.cuh"
#include "select_budget.cuh"
#include "select_number.cuh"

namespace capmoe::cuda {

template <class Team, class Problem>
__device__ void keep_none(const Team& team, const Problem& problem, int expert) {
  for (int word = team.rank(); word < problem.words; word += Team::kSize) {
    problem.slots[problem.word(expert, word)] = {0, 0};
    if (!problem.decides_once()) problem.marks.asks[problem.word(expert, word)] = 0;
  }
  if (team.rank() == 0) problem.out.tokens_per_expert[expert] = 0;
}

// Experts [first, first + unit), numbered and found over their budget, once more within it.
template <class Team, class Problem>
__device__ __forceinline__ void cut_budget(const Team& team, const Problem& problem, int first, int budget, int asked) {
  if (budget > 0 && problem.sharing() == 1 && problem.ranks_by_policy_only()) {
    keep_best(team, problem, first, budget, asked);
    if (team.rank() == 0) problem.out.tokens_per_expert[first] = budget;
    return;
  }
  if (budget > 0) {
    drop_losers(team, problem, first, budget, asked);
    number_rows(team, problem, first, false);
  } else {
    for (int expert = first; expert < first + problem.sharing(); ++expert) keep_none(team, problem, expert);
  }
  team.sync();
}

// A warp's rows, each of 2**lanes_log lanes, or a budget's one after the other; it cuts the budgets that it can list.
// True where it leaves some.
template <class Problem>
__device__ __forceinline__ bool decide_by_warp(const Team<1>& warp, const Problem& problem, int budget, int lanes_log,
                                               bool first_time) {
  const bool alone = problem.sharing() == 1;
  const int warps = gridDim.x * (blockDim.x / 32), own = blockIdx.x + threadIdx.x / 32 * gridDim.x;
  const int lanes = 1 << lanes_log, each = alone ? 32 >> lanes_log : problem.sharing();
  bool leaves = false;
#pragma unroll 1
  for (int first = own * each; first < problem.experts; first += warps * each) {
    const int asked = alone ? number_rows_at_once(problem, first, lanes_log, first_time).asks
                            : number_rows(warp, problem, first, first_time);
    uint32_t over = __ballot_sync(kWholeWarp, (lane_id() & (lanes - 1)) == 0 && asked > budget);
    if (over != 0) warp.sync();  // the slots that others wrote
#pragma unroll 1
    for (; over != 0; over &= over - 1) {
      const int leader = __ffs(over) - 1, asks = __shfl_sync(kWholeWarp, asked, leader);
      if (asks > warp.listed) {
        leaves = true;
        continue;
      }
      cut_budget(warp, problem, first + (leader >> lanes_log), budget, asks);
    }
  }
  return leaves;
}

// What the block's warps leave, or, where rows are long, all that is the block's.
template <class Block, class Problem>
__device__ __forceinline__ void decide_by_block(const Block& block, const Problem& problem, int budget, int each,
                                                bool numbers, bool first_time) {
#pragma unroll 1
  for (int start = blockIdx.x * each; start < problem.experts; start += gridDim.x * each) {
#pragma unroll 1
    for (int first = start; first < min(start + each, problem.experts); first += problem.sharing()) {
      int asked = 0;
      if (numbers) {
        asked = number_rows(block, problem, first, first_time);
        block.sync();  // the slots that others wrote
      } else {
        const volatile int* counts = problem.out.tokens_per_expert + first;
        for (int i = 0; i < problem.sharing(); ++i) asked += counts[i];
        block.sync();  // all have read what is about to change
      }
      if (asked > budget) cut_budget(block, problem, first, budget, asked);
      block.sync();
    }
  }
}

// Lanes of a row, as a logarithm. Budgets that are exceeded are cut one after the other, so that each has a warp of its
// own where there are enough.
template <class Problem>
__device__ __forceinline__ int lanes_of_rows(const Problem& problem, int budget) {
  const int warps = gridDim.x * (blockDim.x / 32);
  const bool apart = problem.sharing() > 1 || (warps >= problem.experts && budget < problem.tokens);
  return apart ? 5 : row_lanes_log(problem.words);
}

// Every budget, by all blocks of the grid.
template <int kWarps, class Problem>
__device__ __forceinline__ void decide_all(const TeamMemory& memory, const Problem& problem, int budget,
                                           bool first_time) {
  constexpr int kMostWords = 1024;  // of a budget's rows, for a warp
  const int lanes_log = lanes_of_rows(problem, budget);
  if constexpr (Problem::kWarpsSuffice) {
    decide_by_warp(Team<1>(memory), problem, budget, lanes_log, first_time);
  } else {
    const bool by_block = int64_t{problem.words} * problem.sharing() > kMostWords;
    const int each = problem.sharing() > 1 ? problem.sharing() : 32 >> lanes_log;
    bool left = by_block;
    if (!by_block) {
      left = decide_by_warp(Team<1>(memory), problem, budget, lanes_log, first_time);
      if (budget < problem.tokens * int64_t{problem.sharing()}) left = __syncthreads_or(left);
    }
    if (left) decide_by_block(Team<kWarps>(memory), problem, budget, each, by_block, first_time);
  }
}

}  // namespace capmoe::cuda
