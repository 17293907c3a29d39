// Capacity where experts have budgets of their own and nobody asks twice: who stays is what is above a threshold, an
// expert's C-th largest key. No pair is moved and none is sorted: a pass over the pairs counts, a second one collects
// the keys of experts that are asked too often, a third one gives out rows.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "clones.h"
#include "kernels.h"
#include "priority.h"
#include "select.h"

namespace capmoe::cpu {
namespace {

constexpr int32_t kLowest = std::numeric_limits<int32_t>::min(), kHighest = std::numeric_limits<int32_t>::max();

struct Expert {
  int64_t last_token = -1;      // that listed it
  int32_t count = 0;            // of the pairs that ask
  int32_t threshold = kLowest;  // a key above it stays
  int32_t ties = kHighest;      // as do so many that equal it, the first ones
  int32_t skip = 0;             // after so many that do not
  int32_t next = 0;             // where its next key goes, later its next row
  int32_t step = 0;             // 1 where its keys are collected
};

// A last one stands for pairs that are not used.
using Experts = std::vector<Expert>;

// Signed integers in the order of the policy's keys. By position there is nothing to compare: `ties` and `skip` decide.
template <Policy kPolicy>
inline int32_t key_of(const Select& config, int64_t token, int32_t expert, float score) {
  if (kPolicy == Policy::score) return static_cast<int32_t>(orderable(score) ^ 0x80000000u);
  if (kPolicy != Policy::random) return kLowest;
  const uint32_t hash = pair_hash(config.seed, static_cast<uint32_t>(token), static_cast<uint32_t>(expert));
  return static_cast<int32_t>(hash ^ 0x80000000u);
}

// Copies ids; num_experts where the pair is unused: out of range, padding, or a repeated expert. Counts them.
template <class Id>
void count_pairs(const Id* ids, const bool* token_mask, const Select& config, int32_t* expert_ids, Experts& experts) {
  const int64_t columns = config.columns;
  for (int64_t t = 0; t < config.tokens; ++t) {
    const bool real = token_mask == nullptr || token_mask[t];
    for (int64_t pair = t * columns; pair < (t + 1) * columns; ++pair) {
      const int64_t id = ids[pair];
      int64_t expert = real && id >= 0 && id < config.num_experts ? id : config.num_experts;
      expert = experts[expert].last_token == t ? config.num_experts : expert;
      experts[expert].last_token = t;
      ++experts[expert].count;
      expert_ids[pair] = static_cast<int32_t>(expert);
    }
  }
}

void count_demand(const Select& config, const Experts& experts, const Selection& out) {
  std::fill_n(out.demand_per_expert, config.num_experts, 0);
  if (config.columns <= config.top_k) {
    for (int64_t e = 0; e < config.num_experts; ++e) out.demand_per_expert[e] = experts[e].count;
    return;
  }
  for (int64_t t = 0; t < config.tokens; ++t) {
    for (int64_t j = 0; j < config.top_k; ++j) {
      const int32_t id = out.expert_ids[t * config.columns + j];
      if (id < config.num_experts) ++out.demand_per_expert[id];
    }
  }
}

// Keys of the experts that are asked by more than `capacity`, each expert's in token order. The others' go to one
// place, which there is wherever there are others.
template <Policy kPolicy>
void collect_keys(const Select& config, int64_t capacity, const float* scores, const int32_t* expert_ids,
                  Experts& experts, int32_t* keys) {
  int32_t end = 0;
  for (Expert& expert : experts) {
    expert.next = end;
    expert.step = expert.count > capacity;
    end += expert.step ? expert.count : 0;
  }
  for (Expert& expert : experts) expert.next = expert.step ? expert.next : end;
  for (int64_t t = 0; t < config.tokens; ++t) {
    for (int64_t pair = t * config.columns; pair < (t + 1) * config.columns; ++pair) {
      Expert& expert = experts[expert_ids[pair]];
      keys[expert.next] = key_of<kPolicy>(config, t, expert_ids[pair], scores[pair]);
      expert.next += expert.step;
    }
  }
}

CAPMOE_CLONES int32_t count_at_least(const int32_t* keys, int32_t count, int32_t least) {
  int32_t found = 0;
  for (int32_t i = 0; i < count; ++i) found += keys[i] >= least;
  return found;
}

CAPMOE_CLONES void find_range(const int32_t* keys, int32_t count, int32_t* low, int32_t* high) {
  int32_t smallest = keys[0], largest = keys[0];
  for (int32_t i = 1; i < count; ++i) {
    smallest = keys[i] < smallest ? keys[i] : smallest;
    largest = keys[i] > largest ? keys[i] : largest;
  }
  *low = smallest;
  *high = largest;
}

// The threshold that `capacity` of the keys pass; 0 < capacity < expert.count. By halving the range of values: to count
// takes a vector of keys at a time, to sort does not.
void find_threshold(const int32_t* keys, int32_t capacity, Expert& expert) {
  int32_t least, most;
  find_range(keys, expert.count, &least, &most);
  int64_t low = least, high = most;
  int32_t above = 0;  // keys > high
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    const int32_t found = count_at_least(keys, expert.count, static_cast<int32_t>(middle));
    if (found > capacity) {
      low = middle;
    } else {
      high = middle - 1;
      above = found;
      if (found == capacity) break;
    }
  }
  expert.threshold = static_cast<int32_t>(high);
  expert.ties = capacity - above;
}

template <Policy kPolicy>
void bound(const Select& config, int64_t capacity, const float* scores, const Selection& out, Experts& experts,
           const ParallelFor& parallel_for) {
  const auto is_full = [capacity](const Expert& expert) { return expert.count > capacity; };
  if (std::none_of(experts.begin(), experts.end() - 1, is_full)) return;
  constexpr bool kCompares = kPolicy == Policy::score || kPolicy == Policy::random;
  int32_t* keys = out.rows;  // [T, K], not yet written
  if (kCompares && capacity > 0) collect_keys<kPolicy>(config, capacity, scores, out.expert_ids, experts, keys);
  const auto bound_expert = [&](Expert& expert) {
    if (!is_full(expert)) return;
    expert.threshold = capacity == 0 ? kHighest : kLowest;
    expert.ties = static_cast<int32_t>(capacity);
    if (kPolicy == Policy::keep_last) expert.skip = expert.count - static_cast<int32_t>(capacity);
    if (kCompares && capacity > 0) find_threshold(keys + expert.next - expert.count, expert.ties, expert);
  };
  parallel_for(config.num_experts, [&](int64_t begin, int64_t end) {
    std::for_each(experts.begin() + begin, experts.begin() + end, bound_expert);
  });
}

// Rescales a token's kept weights to kept_weight_sum.
void normalise(const Select& config, float* weights) {
  double sum = 0;  // in double, so that the order of addition does not show in float
  for (int64_t j = 0; j < config.columns; ++j) sum += weights[j];
  const float total = static_cast<float>(std::max(sum, 1e-20));
  for (int64_t j = 0; j < config.columns; ++j) weights[j] = weights[j] / total * config.kept_weight_sum;
}

// Whether a pair stays is a mask and no branch: no processor could guess it.
template <Policy kPolicy>
void give_rows(const Select& config, const float* weights, const float* scores, const Selection& out,
               Experts& experts) {
  int32_t nowhere;
  for (int64_t t = 0; t < config.tokens; ++t) {
    for (int64_t pair = t * config.columns; pair < (t + 1) * config.columns; ++pair) {
      const int32_t id = out.expert_ids[pair];
      Expert& expert = experts[id];
      const int32_t key = key_of<kPolicy>(config, t, id, scores[pair]);
      bool tie = (key == expert.threshold) & (expert.ties > 0);
      if (kPolicy == Policy::keep_last) tie &= expert.skip-- <= 0;
      expert.ties -= tie;
      const int64_t kept = -static_cast<int64_t>((key > expert.threshold) | tie);  // all ones, or all zeros
      const int32_t row = expert.next, mask = static_cast<int32_t>(kept);
      expert.next -= mask;
      out.rows[pair] = row | ~mask;
      out.weights[pair] = bit_cast<float>(bit_cast<int32_t>(weights[pair]) & mask);
      const auto there = reinterpret_cast<intptr_t>(out.row_tokens + row), away = reinterpret_cast<intptr_t>(&nowhere);
      *reinterpret_cast<int32_t*>((there & kept) | (away & ~kept)) = static_cast<int32_t>(t);
    }
    if (config.kept_weight_sum >= 0) normalise(config, out.weights + t * config.columns);
  }
}

template <Policy kPolicy, class Id>
void select_by(const Id* ids, const float* weights, const float* scores, const bool* token_mask, const Select& config,
               int64_t capacity, const Selection& out, const ParallelFor& parallel_for) {
  Experts experts(config.num_experts + 1);
  count_pairs(ids, token_mask, config, out.expert_ids, experts);
  count_demand(config, experts, out);
  experts[config.num_experts].count = 0;
  bound<kPolicy>(config, capacity, scores, out, experts, parallel_for);
  for (int64_t e = 0; e < config.num_experts; ++e) {
    out.tokens_per_expert[e] = static_cast<int32_t>(std::min<int64_t>(experts[e].count, capacity));
  }
  place_experts(config, out);
  for (int64_t e = 0; e < config.num_experts; ++e) experts[e].next = out.expert_offsets[e];
  experts[config.num_experts].threshold = kHighest;
  experts[config.num_experts].ties = 0;
  give_rows<kPolicy>(config, weights, scores, out, experts);
}

}  // namespace

bool once_is_enough(const Select& config, bool has_priority) {
  const bool two_classes = config.topk_first && config.columns > config.top_k;
  return config.reroute_rounds <= 1 && config.unit == 1 && config.max_per_token >= config.columns && !has_priority &&
         !two_classes;
}

template <class Id>
void select_once(const Id* ids, const float* weights, const float* scores, const bool* token_mask, const Select& config,
                 int64_t capacity, const Selection& out, const ParallelFor& parallel_for) {
  const auto by = [&](auto select) { select(ids, weights, scores, token_mask, config, capacity, out, parallel_for); };
  switch (config.policy) {
    case Policy::score:
      return by(select_by<Policy::score, Id>);
    case Policy::keep_first:
      return by(select_by<Policy::keep_first, Id>);
    case Policy::keep_last:
      return by(select_by<Policy::keep_last, Id>);
    case Policy::random:
      return by(select_by<Policy::random, Id>);
  }
}

template void select_once(const int32_t*, const float*, const float*, const bool*, const Select&, int64_t,
                          const Selection&, const ParallelFor&);
template void select_once(const int64_t*, const float*, const float*, const bool*, const Select&, int64_t,
                          const Selection&, const ParallelFor&);

}  // namespace capmoe::cpu
