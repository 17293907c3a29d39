// Who comes first among those that ask for the same budget: a total order on pairs.
#pragma once

#include <cmath>

#include "convert.h"
#include "kernels.h"

namespace capmoe::cpu {

// Wellons' lowbias32: an avalanche of the bits of a 32-bit integer, and a bijection.
inline uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// The same on every backend; for one expert no two tokens share a value.
inline uint32_t pair_hash(uint64_t seed, uint32_t token, uint32_t expert) {
  const uint32_t start = mix(mix(static_cast<uint32_t>(seed)) ^ static_cast<uint32_t>(seed >> 32));
  return mix(mix(start + token) + expert);
}

// Unsigned integers in the order of the floats. -0 equals 0, NaN equals -inf.
inline uint32_t orderable(float x) {
  if (x != x) x = -INFINITY;
  const uint32_t bits = bit_cast<uint32_t>(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

inline uint32_t policy_key(const Select& config, int64_t token, int32_t expert, float score) {
  switch (config.policy) {
    case Policy::keep_first:
      return ~static_cast<uint32_t>(token);
    case Policy::keep_last:
      return static_cast<uint32_t>(token);
    case Policy::random:
      return pair_hash(config.seed, static_cast<uint32_t>(token), static_cast<uint32_t>(expert));
    case Policy::score:
      break;
  }
  return orderable(score);
}

struct Candidate {
  int64_t priority_class;  // of the token; before everything else
  uint64_t key;            // 1 bit top-k before extra, 32 bits policy, 31 bits place in the list, inverted
  int64_t pair;            // index into [T, K]

  bool operator<(const Candidate& other) const {  // comes first
    if (priority_class != other.priority_class) return priority_class > other.priority_class;
    return key > other.key;
  }
};

inline uint64_t candidate_key(bool first, uint32_t policy, int64_t place) {
  return uint64_t{first} << 63 | uint64_t{policy} << 31 | (0x7fffffffu - static_cast<uint32_t>(place));
}

}  // namespace capmoe::cpu
