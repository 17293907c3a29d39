// Scores, top-k and extra candidates, a token at a time. The semantics are those of reference/gate.py.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "convert.h"
#include "kernels.h"

namespace capmoe::cpu {
namespace {

constexpr float kForbidden = -INFINITY;
// Up to here a sorted list with insertion beats a heap.
constexpr int64_t kInsertionColumns = 32;

// One token's experts; reused from token to token.
struct Row {
  explicit Row(int64_t num_experts)
      : score(num_experts), rank_by(num_experts), order(num_experts), taken(num_experts) {}

  std::vector<float> score;    // softmax or sigmoid; 0 where forbidden
  std::vector<float> rank_by;  // kForbidden where forbidden
  std::vector<int32_t> order;
  std::vector<char> taken;
  std::vector<float> group_value;
  std::vector<int32_t> group_order;
};

// NaN forbids an expert as -inf does; +inf counts as the largest float.
template <class T>
void load_logits(const T* logits, Row& row) {
  for (size_t e = 0; e < row.rank_by.size(); ++e) {
    const float x = to_float(logits[e]);
    row.rank_by[e] = x > kForbidden ? std::min(x, FLT_MAX) : kForbidden;
  }
}

void softmax(Row& row) {
  const float largest = *std::max_element(row.rank_by.begin(), row.rank_by.end());
  if (largest == kForbidden) return std::fill(row.score.begin(), row.score.end(), 0.0f);
  float sum = 0;
  for (size_t e = 0; e < row.score.size(); ++e) {
    row.score[e] = std::exp(row.rank_by[e] - largest);
    sum += row.score[e];
  }
  for (float& score : row.score) score /= sum;
}

void sigmoid(Row& row) {
  for (size_t e = 0; e < row.score.size(); ++e) {
    row.score[e] = row.rank_by[e] == kForbidden ? 0.0f : 1.0f / (1.0f + std::exp(-row.rank_by[e]));
  }
}

void add_bias(const float* bias, Row& row) {
  for (size_t e = 0; e < row.score.size(); ++e) {
    if (row.rank_by[e] == kForbidden) continue;
    const float ranked = row.score[e] + bias[e];
    row.rank_by[e] = ranked > kForbidden ? ranked : kForbidden;
  }
}

// The ids in [begin, end) from best to worst, at most `count`, ties to the lower id. Skips forbidden
// and taken ones. Returns how many there are.
int64_t best_first(const std::vector<float>& value, const std::vector<char>& taken, int64_t begin, int64_t end,
                   int64_t count, int32_t* ids) {
  int64_t found = 0;
  if (count <= kInsertionColumns) {
    for (int64_t e = begin; e < end; ++e) {
      if (value[e] == kForbidden || taken[e]) continue;
      if (found == count && (count == 0 || !(value[e] > value[ids[count - 1]]))) continue;
      int64_t at = found < count ? found++ : count - 1;
      for (; at > 0 && value[e] > value[ids[at - 1]]; --at) ids[at] = ids[at - 1];
      ids[at] = static_cast<int32_t>(e);
    }
    return found;
  }
  std::vector<int32_t> all;
  for (int64_t e = begin; e < end; ++e) {
    if (value[e] != kForbidden && !taken[e]) all.push_back(static_cast<int32_t>(e));
  }
  found = std::min<int64_t>(count, all.size());
  std::partial_sort(all.begin(), all.begin() + found, all.end(),
                    [&](int32_t a, int32_t b) { return value[a] != value[b] ? value[a] > value[b] : a < b; });
  std::copy_n(all.begin(), found, ids);
  return found;
}

float group_value(const std::vector<float>& ranked, const std::vector<float>& summand, int64_t begin, int64_t end,
                  bool top2_sum) {
  int64_t best = -1, second = -1;
  for (int64_t e = begin; e < end; ++e) {
    if (ranked[e] == kForbidden) continue;
    if (best < 0 || ranked[e] > ranked[best]) {
      second = best;
      best = e;
    } else if (second < 0 || ranked[e] > ranked[second]) {
      second = e;
    }
  }
  if (best < 0) return kForbidden;
  if (!top2_sum) return ranked[best];
  return second < 0 ? summand[best] : summand[best] + summand[second];
}

// Forbids the experts outside the token's best groups. Ties go to the lower group.
void limit_groups(const Gate& config, bool has_bias, Row& row) {
  const int64_t size = config.num_experts / config.num_groups;
  const std::vector<float>& summand = has_bias ? row.rank_by : row.score;
  row.group_value.resize(config.num_groups);
  row.group_order.resize(config.num_groups);
  for (int64_t g = 0; g < config.num_groups; ++g) {
    row.group_value[g] = group_value(row.rank_by, summand, g * size, (g + 1) * size, config.top2_sum);
    row.group_order[g] = static_cast<int32_t>(g);
  }
  std::stable_sort(row.group_order.begin(), row.group_order.end(),
                   [&](int32_t a, int32_t b) { return row.group_value[a] > row.group_value[b]; });
  for (int64_t i = config.topk_groups; i < config.num_groups; ++i) {
    std::fill_n(row.rank_by.begin() + row.group_order[i] * size, size, kForbidden);
  }
}

// The token's candidates, best first; returns how many.
int64_t choose(const Gate& config, Row& row) {
  const int64_t ranked = config.expand == Expand::rank ? config.columns : config.top_k;
  int64_t found = best_first(row.rank_by, row.taken, 0, config.num_experts, ranked, row.order.data());
  if (config.expand != Expand::local) return found;
  for (int64_t j = 0; j < found; ++j) row.taken[row.order[j]] = 1;
  const int64_t extra = best_first(row.rank_by, row.taken, config.local_start, config.local_stop,
                                   config.columns - found, row.order.data() + found);
  for (int64_t j = 0; j < found; ++j) row.taken[row.order[j]] = 0;
  return found + extra;
}

void write_token(const Gate& config, const Row& row, int64_t found, int32_t* ids, float* weights, float* scores) {
  // In double, so that the order of addition does not show in float.
  double sum = 0;
  for (int64_t j = 0; j < std::min(found, config.top_k); ++j) sum += row.score[row.order[j]];
  const float denominator = static_cast<float>(std::max(sum, 1e-20));
  for (int64_t j = 0; j < config.columns; ++j) {
    const float score = j < found ? row.score[row.order[j]] : 0.0f;
    const float normalised = score / denominator;
    ids[j] = j < found ? row.order[j] : static_cast<int32_t>(config.num_experts);
    scores[j] = config.drop_by_weight && config.renormalize != Renormalize::none ? normalised : score;
    weights[j] = score;  // for `kept`, which select normalises
    if (config.renormalize == Renormalize::none) weights[j] = score * config.scaling;
    if (config.renormalize == Renormalize::topk) weights[j] = normalised * config.scaling;
  }
}

}  // namespace

template <class T>
void gate(const T* logits, const float* bias, const Gate& config, int32_t* expert_ids, float* weights, float* scores,
          const ParallelFor& parallel_for) {
  parallel_for(config.tokens, [&](int64_t begin, int64_t end) {
    Row row(config.num_experts);
    for (int64_t t = begin; t < end; ++t) {
      load_logits(logits + t * config.num_experts, row);
      config.sigmoid ? sigmoid(row) : softmax(row);
      if (bias != nullptr) add_bias(bias, row);
      if (config.num_groups > 1) limit_groups(config, bias != nullptr, row);
      const int64_t found = choose(config, row);
      const int64_t at = t * config.columns;
      write_token(config, row, found, expert_ids + at, weights + at, scores + at);
    }
  });
}

template void gate(const float*, const float*, const Gate&, int32_t*, float*, float*, const ParallelFor&);
template void gate(const BFloat16*, const float*, const Gate&, int32_t*, float*, float*, const ParallelFor&);
template void gate(const Half*, const float*, const Gate&, int32_t*, float*, float*, const ParallelFor&);

}  // namespace capmoe::cpu
