// Who comes first among those that ask for the same budget. The order is that of csrc/cpu/priority.h.
#pragma once

#include "select_problem.cuh"

namespace capmoe::cuda {

// Wellons' lowbias32: an avalanche of the bits of a 32-bit integer, and a bijection.
__device__ __forceinline__ uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

__device__ __forceinline__ uint32_t pair_hash(uint64_t seed, uint32_t token, uint32_t expert) {
  const uint32_t start = mix(mix(static_cast<uint32_t>(seed)) ^ static_cast<uint32_t>(seed >> 32));
  return mix(mix(start + token) + expert);
}

// What a policy ranks by where it is not the score: higher is kept first.
template <class Problem>
__device__ __forceinline__ uint32_t policy_key(const Problem& problem, int token, int expert) {
  if (problem.config.policy == Policy::random) return pair_hash(problem.config.seed, token, expert);
  return problem.config.policy == Policy::keep_first ? ~static_cast<uint32_t>(token) : static_cast<uint32_t>(token);
}

// The policy's keys of one expert.
template <class Problem>
struct PolicyKeys {
  const Problem& problem;
  int expert;
  const uint32_t* row;

  __device__ PolicyKeys(const Problem& problem, int expert) : problem(problem), expert(expert) {
    row = problem.on_cards() ? problem.marks.cards + problem.word(expert, 0) * kCardWords
                             : problem.marks.keys + size_t(expert) * problem.tokens;
  }
  __device__ bool made() const { return problem.config.policy != Policy::score; }
  __device__ bool on_cards() const { return problem.on_cards(); }
  __device__ uint32_t load(size_t place) const { return row[place]; }
  __device__ uint32_t make(int word, int bit) const { return policy_key(problem, word * 32 + bit, expert); }
};

}  // namespace capmoe::cuda
