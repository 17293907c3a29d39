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

// A pair's class, then 1 bit for a top-k candidate and 32 of the policy: higher is kept first.
struct PairKey {
  uint64_t priority_class, policy;
};

template <class Problem>
__device__ __forceinline__ uint32_t policy_key(const Problem& problem, int token, int expert) {
  switch (problem.config.policy) {
    case Policy::keep_first:
      return ~static_cast<uint32_t>(token);
    case Policy::keep_last:
      return static_cast<uint32_t>(token);
    case Policy::random:
      return pair_hash(problem.config.seed, token, expert);
    case Policy::score:
      break;
  }
  return problem.marks.keys[size_t(expert) * problem.tokens + token];
}

template <class Problem>
__device__ PairKey pair_key(const Problem& problem, int token, int expert) {
  PairKey key{0, policy_key(problem, token, expert)};
  if (problem.config.topk_first && problem.marks.top != nullptr) {
    const uint32_t top = problem.marks.top[problem.word(expert, token / 32)];
    key.policy |= uint64_t{top >> (token % 32) & 1} << 32;
  }
  if (problem.token_priority != nullptr) {
    key.priority_class = static_cast<uint64_t>(problem.token_priority[token]) ^ (uint64_t{1} << 63);
  }
  return key;
}

}  // namespace capmoe::cuda
