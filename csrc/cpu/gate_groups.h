// Experts in groups: a token may use only its best groups. Include as gate_vector.h.
#pragma once

#include "gate_vector.h"

namespace capmoe::cpu {
namespace {

// One token's keys and scores, [E'].
inline float group_value(const int32_t* keys, const float* scores, bool has_bias, int64_t begin, int64_t end,
                         bool top2_sum) {
  int64_t best = -1, second = -1;
  for (int64_t e = begin; e < end; ++e) {
    if (keys[e] <= kTaken) continue;
    if (best < 0 || keys[e] > keys[best]) {
      second = best;
      best = e;
    } else if (second < 0 || keys[e] > keys[second]) {
      second = e;
    }
  }
  if (best < 0) return kForbidden;
  if (!top2_sum) return float_of(keys[best]);
  const auto summand = [&](int64_t e) { return has_bias ? float_of(keys[e]) : scores[e]; };
  return second < 0 ? summand(best) : summand(best) + summand(second);
}

// Takes the keys of the experts outside the token's best groups. Ties go to the lower group.
inline void limit_groups(const Gate& config, bool has_bias, int32_t* keys, const float* scores, float* values) {
  const int64_t groups = config.num_groups, size = config.num_experts / groups;
  for (int64_t g = 0; g < groups; ++g) {
    values[g] = group_value(keys, scores, has_bias, g * size, (g + 1) * size, config.top2_sum);
  }
  for (int64_t g = 0; g < groups; ++g) {
    int64_t better = 0;
    for (int64_t h = 0; h < groups; ++h) better += values[h] > values[g] || (h < g && values[h] == values[g]);
    if (better >= config.topk_groups) std::fill_n(keys + g * size, size, kTaken);
  }
}

}  // namespace
}  // namespace capmoe::cpu
