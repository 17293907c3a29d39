// Any budget that is exceeded, whatever ranks the pairs, and however many experts share it.
#pragma once

#include "select_threshold.cuh"

namespace capmoe::cuda {

// The separating key as far as it had to be known.
struct Threshold {
  KeyPrefix<uint64_t> priority_class, policy;
  Cut cut;

  __device__ bool contains(const PairKey& key) const {
    return priority_class.contains(key.priority_class) && policy.contains(key.policy);
  }
  __device__ bool passes(const PairKey& key) const {
    const uint64_t high = key.priority_class & priority_class.mask;
    return high != priority_class.value ? high > priority_class.value : (key.policy & policy.mask) > policy.value;
  }
};

// Calls visit(key) for every pair that asks for the budget of experts [first, first + unit).
template <class Team, class Problem, class Visit>
__device__ void for_each_ask(const Team& team, const Problem& problem, int first, Visit visit) {
  for (int i = team.rank(); i < problem.words * problem.unit; i += Team::kSize) {
    const int expert = first + i / problem.words, word = i % problem.words;
    for (uint32_t bits = problem.slots[problem.word(expert, word)].kept; bits != 0; bits &= bits - 1) {
      visit(pair_key(problem, word * 32 + __ffs(bits) - 1, expert));
    }
  }
}

// Of the `asked` > `budget` > 0 pairs of a budget, what separates the first `budget`.
template <class Team, class Problem>
__device__ Threshold find_threshold(const Team& team, const Problem& problem, int first, int budget, int asked) {
  Threshold threshold;
  threshold.cut = {budget, asked};
  // Digits 12 to 5 are the class's, 4 tells the top-k's candidates from extra ones, 3 to 0 are the policy's.
  const int highest = problem.token_priority != nullptr ? 12 : problem.ranks_by_policy_only() ? 3 : 4;
  for (int digit = highest; digit >= 0 && !threshold.cut.settled(); --digit) {
    const bool of_class = digit > 4;
    const int shift = 8 * (of_class ? digit - 5 : digit);
    const uint32_t value = next_digit(team, threshold.cut, [&] {
      for_each_ask(team, problem, first, [&](const PairKey& key) {
        if (!threshold.contains(key)) return;
        atomicAdd(&team.bins[(of_class ? key.priority_class : key.policy) >> shift & (kBins - 1)], 1);
      });
    });
    if (of_class) {
      threshold.priority_class.add(value, shift);
    } else {
      threshold.policy.add(value, shift);
    }
  }
  return threshold;
}

// Splits a word's asks: those that stay for sure become its asks, and those at the threshold slots[].before.
template <class Problem>
__device__ int split_word(const Problem& problem, const Threshold& threshold, int expert, int word) {
  const size_t at = problem.word(expert, word);
  uint32_t above = 0, equal = 0;
  for (uint32_t bits = problem.slots[at].kept; bits != 0; bits &= bits - 1) {
    const PairKey key = pair_key(problem, word * 32 + __ffs(bits) - 1, expert);
    if (threshold.contains(key)) {
      equal |= bits & -bits;
    } else if (threshold.passes(key)) {
      above |= bits & -bits;
    }
  }
  problem.marks.asks[at] = above;
  problem.slots[at].before = equal;
  return __popc(equal);
}

// Gives `take` places to the word's pairs at the threshold: lower tokens first, then lower experts.
template <class Problem>
__device__ void share_ties(const Problem& problem, int first, int word, int take) {
  for (int bit = 0; bit < 32 && take > 0; ++bit) {
    for (int expert = first; expert < first + problem.unit && take > 0; ++expert) {
      const size_t at = problem.word(expert, word);
      if ((problem.slots[at].before >> bit & 1) == 0) continue;
      problem.marks.asks[at] |= 1u << bit;
      --take;
    }
  }
}

// Clears the asks of experts [first, first + unit) beyond the budget. slots say who asks, and are spoilt.
template <class Team, class Problem>
__device__ void drop_losers(const Team& team, const Problem& problem, int first, int budget, int asked) {
  const Threshold threshold = find_threshold(team, problem, first, budget, asked);
  team.sync();
  int seen = 0;
  for (int start = 0; start < problem.words; start += Team::kSize) {
    const int word = start + team.rank();
    int ties = 0;
    for (int expert = first; word < problem.words && expert < first + problem.unit; ++expert) {
      ties += split_word(problem, threshold, expert, word);
    }
    const int before = team.exclusive_scan(ties, &seen);
    if (ties > 0) share_ties(problem, first, word, threshold.cut.take - before);
  }
  team.sync();
}

}  // namespace capmoe::cuda
