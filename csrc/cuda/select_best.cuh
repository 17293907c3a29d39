// One expert over capacity, where nothing but the policy ranks: the usual case.
#pragma once

#include "select_sources.cuh"
#include "select_threshold.cuh"

namespace capmoe::cuda {

// Rewrites slots, and clears asks: `budget` > 0 of the `asked` stay. slots say who asks, and how many ask before each
// word.
template <class Team, class Problem>
__device__ __forceinline__ void keep_best(const Team& team, const Problem& problem, int expert, int budget, int asked) {
  const size_t row = problem.word(expert, 0);
  const PolicyKeys<Problem> policy(problem, expert);
  const AskedKeys<Team, Problem, PolicyKeys<Problem>> keys(team, problem, row, problem.words, asked, policy);
  Cut cut{budget, asked};
  const uint32_t value = separate(team, keys, cut);
  int ties = 0, total = 0;
  for (int start = 0; start < problem.words; start += Team::kSize) {
    const int word = start + team.rank();
    const SlotWord asks = word < problem.words ? problem.slots[row + word] : SlotWord{0, 0};
    SplitWord split = split_word(keys, word, asks, value, cut.settled());
    if (!cut.settled()) {
      const int before = team.exclusive_scan(__popc(split.equal), &ties);
      split.equal = lowest(split.equal, cut.take - before);
    }
    const uint32_t kept = split.above | split.equal;
    const int before = team.exclusive_scan(__popc(kept), &total);
    if (word >= problem.words) continue;
    problem.slots[row + word] = {kept, static_cast<uint32_t>(before)};
    if (!problem.decides_once()) problem.marks.asks[row + word] = kept;
  }
  team.sync();
}

}  // namespace capmoe::cuda
