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
    problem.marks.asks[problem.word(expert, word)] = 0;
  }
}

// Experts [first, first + unit), numbered and found over their budget, once more within it.
template <class Team, class Problem>
__device__ void cut_budget(const Team& team, const Problem& problem, int first, int64_t budget, int asked) {
  if (budget > 0 && problem.unit == 1 && asked <= team.listed && problem.ranks_by_policy_only()) {
    keep_best(team, problem, first, static_cast<int>(budget), asked);
    if (team.rank() == 0) problem.out.tokens_per_expert[first] = static_cast<int>(budget);
    return;
  }
  if (budget > 0) {
    drop_losers(team, problem, first, static_cast<int>(budget), asked);
  } else {
    for (int expert = first; expert < first + problem.unit; ++expert) keep_none(team, problem, expert);
    team.sync();
  }
  number_rows(team, problem, first, false);
}

// Every budget, by all teams of the grid.
template <int kWarps, class Problem>
__device__ void decide_all(const Team<kWarps>& block, const Problem& problem, int64_t budget, bool first_time) {
  const int step = gridDim.x * problem.unit;
#pragma unroll 1
  for (int first = blockIdx.x * problem.unit; first < problem.experts; first += step) {
    const int asked = number_rows(block, problem, first, first_time);
    block.sync();  // the slots that others wrote
    if (asked > budget) cut_budget(block, problem, first, budget, asked);
    block.sync();
  }
}

template <class Problem>
__device__ void decide_all(const Team<1>& warp, const Problem& problem, int64_t budget, bool first_time) {
  const bool alone = problem.unit == 1;
  const int warps = gridDim.x * (blockDim.x / 32), own = blockIdx.x + threadIdx.x / 32 * gridDim.x;
  int lanes = alone ? lanes_per_row(problem.words) : 32;
  // Where warps abound, fewer experts each: those over their budget are decided one after the other.
  while (lanes < 32 && warps * (32 / lanes) >= 2 * problem.experts) lanes *= 2;
  const int each = alone ? 32 / lanes : problem.unit;
#pragma unroll 1
  for (int first = own * each; first < problem.experts; first += warps * each) {
    const int asked = alone ? number_rows_at_once(problem, first, lanes, first_time).asks
                            : number_rows(warp, problem, first, first_time);
    uint32_t over = __ballot_sync(kWholeWarp, lane_id() % lanes == 0 && asked > budget);
    if (over != 0) warp.sync();  // the slots that others wrote
#pragma unroll 1
    for (; over != 0; over &= over - 1) {
      const int leader = __ffs(over) - 1;
      cut_budget(warp, problem, first + leader / lanes, budget, __shfl_sync(kWholeWarp, asked, leader));
      warp.sync();
    }
  }
}

}  // namespace capmoe::cuda
