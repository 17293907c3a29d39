// Group-limited routing: which contiguous groups of experts a token may use.
#pragma once

#include <cstdint>

#include "../options.h"
#include "gate_layout.cuh"

namespace capmoe::cuda {

// A group's two largest members so far.
struct BestTwo {
  float first = -INFINITY, second = -INFINITY;

  __device__ __forceinline__ void add(float x) {
    second = fmaxf(second, fminf(first, x));
    first = fmaxf(first, x);
  }
  // What the group counts as; -inf where all its experts are forbidden.
  __device__ __forceinline__ float value(bool top2_sum) const {
    return top2_sum && second > -INFINITY ? first + second : first;
  }
};

// The value of every group, to `values`. members: the row's experts in shared memory, -inf where forbidden. As many
// lanes share a group as the row can spare, at least one.
template <class Layout>
__device__ void group_values(const Gate& config, const float* members, float* values) {
  const int groups = static_cast<int>(config.num_groups);
  const int size = static_cast<int>(config.num_experts) / groups;
  const int lane = Layout::lane_in_row();
  const int spare = max(Layout::kLanes / groups, 1);
  const int sharing = 1 << (31 - __clz(spare));
  for (int start = 0; start < groups; start += Layout::kLanes / sharing) {
    const int group = start + lane / sharing;
    BestTwo best;
    if (group < groups) {
      for (int i = lane % sharing; i < size; i += sharing) best.add(members[group * size + i]);
    }
    for (int step = 1; step < sharing; step *= 2) {
      const float first = __shfl_xor_sync(kAllLanes, best.first, step);
      const float second = __shfl_xor_sync(kAllLanes, best.second, step);
      best.add(first);
      best.add(second);
    }
    if (group < groups && lane % sharing == 0) values[group] = best.value(config.top2_sum);
  }
}

// Writes 1 to `chosen` for the best groups, else 0. Ties go to the lower group.
template <class Layout>
__device__ void choose_groups(const Gate& config, const float* values, int* chosen) {
  const int groups = static_cast<int>(config.num_groups), limit = static_cast<int>(config.topk_groups);
  for (int group = Layout::lane_in_row(); group < groups; group += Layout::kLanes) {
    const float value = values[group];
    int before = 0;
    for (int other = 0; other < groups; ++other) {
      before += values[other] > value || (values[other] == value && other < group);
    }
    chosen[group] = before < limit;
  }
}

// Forbids the experts outside the row's best groups. `members` and `values` are the row's shared memory, a word per
// expert of the layout each.
template <class Layout>
__device__ void limit_groups(const Gate& config, const float (&summand)[Layout::kPerLane], float* members,
                             float* values, float (&rank_by)[Layout::kPerLane]) {
  const int first = Layout::first_expert();
#pragma unroll
  for (int i = 0; i < Layout::kPerLane; ++i) {
    const bool allowed = rank_by[i] > -INFINITY;
    members[first + i] = allowed ? (config.top2_sum ? summand[i] : rank_by[i]) : -INFINITY;
  }
  __syncwarp();
  group_values<Layout>(config, members, values);
  __syncwarp();
  int* chosen = reinterpret_cast<int*>(members);
  choose_groups<Layout>(config, values, chosen);
  __syncwarp();
  const int experts = static_cast<int>(config.num_experts), size = experts / static_cast<int>(config.num_groups);
  int group = first / size, place = first % size;
#pragma unroll
  for (int i = 0; i < Layout::kPerLane; ++i) {
    if (first + i < experts && !chosen[group]) rank_by[i] = -INFINITY;
    if (++place == size) place = 0, ++group;
  }
  __syncwarp();
}

}  // namespace capmoe::cuda
