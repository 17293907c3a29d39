// Any budget that is exceeded, whatever ranks the pairs, and however many experts share it: key by key, from the one
// that decides first. Who shares the separating key competes on by the next.
#pragma once

#include "select_sources.cuh"
#include "select_threshold.cuh"

namespace capmoe::cuda {

// The words of experts [first, first + unit), row after row.
template <class Problem>
struct BudgetRows {
  const Problem& problem;
  int first;

  __device__ size_t base() const { return problem.word(first, 0); }
  __device__ int items() const { return problem.words * problem.sharing(); }
  __device__ int row(int item) const { return problem.sharing() == 1 ? 0 : item / problem.words; }
  __device__ int expert(int item) const { return first + row(item); }
  __device__ int token(int item, int bit) const { return (item - row(item) * problem.words) * 32 + bit; }
};

// Numbers the competitors across all rows.
template <class Team, class Problem>
__device__ void number_competitors(const Team& team, const BudgetRows<Problem>& rows, bool first_time) {
  int total = 0;
  for (int start = 0; start < rows.items(); start += Team::kSize) {
    const int item = start + team.rank();
    const bool inside = item < rows.items();
    SlotWord* slot = rows.problem.slots + rows.base() + item;
    const int before = team.exclusive_scan(inside ? __popc(slot->kept) : 0, &total);
    if (!inside) continue;
    slot->before = before;
    if (first_time) rows.problem.marks.asks[rows.base() + item] = 0;
  }
  team.sync();
}

// Those above the separating key become asks, and those at it, whom a tie must part, remain competitors.
template <class Team, class Problem, class Keys>
__device__ __forceinline__ void part(const Team& team, const BudgetRows<Problem>& rows, const Keys& keys, Cut& cut) {
  const uint32_t value = separate(team, keys, cut);
  for (int item = team.rank(); item < rows.items(); item += Team::kSize) {
    SlotWord* slot = rows.problem.slots + rows.base() + item;
    const SplitWord split = split_word(keys, item, *slot, value, cut.settled());
    rows.problem.marks.asks[rows.base() + item] |= split.above;
    slot->kept = split.equal;
  }
  if (cut.settled()) cut = {0, 0};
  team.sync();
  number_competitors(team, rows, false);
}

// What decides, one after the other.
enum Rank { kClassHigh, kClassLow, kTopK, kPolicy, kRanks };

template <class Problem>
struct RankKeys {
  const BudgetRows<Problem>& rows;
  int rank;

  __device__ bool made() const { return rank == kPolicy && rows.problem.config.policy != Policy::score; }
  __device__ uint32_t make(int item, int bit) const {
    return policy_key(rows.problem, rows.token(item, bit), rows.expert(item));
  }
  __device__ bool on_cards() const { return false; }
  __device__ uint32_t load(size_t place) const {
    const Problem& problem = rows.problem;
    const int item = static_cast<int>(place / 32), bit = place % 32, token = rows.token(item, bit);
    if (rank == kPolicy) return problem.marks.keys[size_t(rows.expert(item)) * problem.tokens + token];
    if (rank == kTopK) return problem.marks.top[rows.base() + item] >> bit & 1;
    const uint64_t priority = static_cast<uint64_t>(problem.token_priority[token]) ^ uint64_t { 1 } << 63;
    return static_cast<uint32_t>(rank == kClassHigh ? priority >> 32 : priority);
  }
};

// Gives `take` places to the word's competitors: lower tokens first, then lower experts.
template <class Problem>
__device__ void share_ties(const Problem& problem, int first, int word, int take) {
  for (int bit = 0; bit < 32 && take > 0; ++bit) {
    for (int expert = first; expert < first + problem.sharing() && take > 0; ++expert) {
      const size_t at = problem.word(expert, word);
      if ((problem.slots[at].kept >> bit & 1) == 0) continue;
      problem.marks.asks[at] |= 1u << bit;
      --take;
    }
  }
}

// Whom no key has parted.
template <class Team, class Problem>
__device__ void part_equals(const Team& team, const Problem& problem, int first, int take) {
  int seen = 0;
  for (int start = 0; start < problem.words; start += Team::kSize) {
    const int word = start + team.rank();
    int ties = 0;
    for (int expert = first; word < problem.words && expert < first + problem.sharing(); ++expert) {
      ties += __popc(problem.slots[problem.word(expert, word)].kept);
    }
    const int before = team.exclusive_scan(ties, &seen);
    if (ties > 0) share_ties(problem, first, word, take - before);
  }
}

// Clears the asks of experts [first, first + unit) beyond the budget: 0 < budget < asked. slots say who asks, and are
// spoilt.
template <class Team, class Problem>
__device__ __forceinline__ void drop_losers(const Team& team, const Problem& problem, int first, int budget,
                                            int asked) {
  const BudgetRows<Problem> rows{problem, first};
  Cut cut{budget, asked};
  number_competitors(team, rows, true);
#pragma unroll 1
  for (int rank = problem.token_priority != nullptr ? kClassHigh : kTopK; rank < kRanks && !cut.settled(); ++rank) {
    if (rank == kTopK && !(problem.config.topk_first && problem.marks.top != nullptr)) continue;
    const RankKeys<Problem> ranked{rows, rank};
    part(team, rows, AskedKeys(team, problem, rows.base(), rows.items(), cut.equal, ranked), cut);
  }
  part_equals(team, problem, first, cut.take);
  team.sync();
}

}  // namespace capmoe::cuda
