// What select's two ways share: by thresholds (select_once.cpp) where one round of competition for each expert's own
// budget decides, by lists of candidates (select.cpp) elsewhere.
#pragma once

#include "kernels.h"

namespace capmoe::cpu {

// From tokens_per_expert: where each expert's rows begin. The rows of no expert get token -1.
void place_experts(const Select& config, const Selection& out);

// Whether select_once computes what is asked for.
bool once_is_enough(const Select& config, bool has_priority);

template <class Id>
void select_once(const Id* ids, const float* weights, const float* scores, const bool* token_mask, const Select& config,
                 int64_t capacity, const Selection& out, const ParallelFor& parallel_for);

}  // namespace capmoe::cpu
