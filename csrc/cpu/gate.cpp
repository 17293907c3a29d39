// Scores, top-k and extra candidates, a token at a time. The semantics are those of reference/gate.py.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "clones.h"
#include "convert.h"
#include "kernels.h"

namespace capmoe::cpu {
namespace {

constexpr float kForbidden = -INFINITY;
constexpr int32_t kTaken = INT32_MIN;  // no float has this key
// Up to here rounds of vector maxima beat a sort.
constexpr int64_t kRoundsColumns = 32;

// One token's experts; reused from token to token.
struct Row {
  explicit Row(int64_t num_experts) : score(num_experts), rank_by(num_experts), key(num_experts), order(num_experts) {}

  std::vector<float> score;    // softmax or sigmoid; 0 where forbidden
  std::vector<float> rank_by;  // kForbidden where forbidden
  std::vector<int32_t> key;    // rank_by as integers, kTaken where forbidden or chosen
  std::vector<int32_t> order;
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

// exp of x <= 0, subnormals and -inf included, within 2 units of the last place; a loop of it becomes vectors.
inline float exp_negative(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x > -104.0f ? x : -104.0f;         // below, exp is 0
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.9875691500e-4f;
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = p * r + c;
  p = p * r * r + r + 1.0f;
  // 2^n as the product of two powers, for one alone cannot be subnormal.
  const int32_t exponent = bit_cast<int32_t>(shifted) - bit_cast<int32_t>(kRound);
  const int32_t half = exponent >> 1;
  return p * bit_cast<float>((half + 127) << 23) * bit_cast<float>((exponent - half + 127) << 23);
}

CAPMOE_CLONES void exp_all(const float* x, float largest, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = exp_negative(x[i] - largest);
}

// Sixteen sums in turn, added in pairs: the same order for every vector width.
CAPMOE_CLONES float sum_all(const float* x, int64_t count) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane];
  }
  for (int64_t lane = 0; i + lane < count; ++lane) lanes[lane] += x[i + lane];
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

CAPMOE_CLONES void divide_all(float* x, float divisor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] /= divisor;
}

void softmax(Row& row) {
  const int64_t count = static_cast<int64_t>(row.score.size());
  const float largest = *std::max_element(row.rank_by.begin(), row.rank_by.end());
  if (largest == kForbidden) return std::fill(row.score.begin(), row.score.end(), 0.0f);
  exp_all(row.rank_by.data(), largest, count, row.score.data());
  divide_all(row.score.data(), sum_all(row.score.data(), count), count);
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

// Takes the largest key, the first where there are several: its index, or -1 where none is left.
CAPMOE_CLONES int64_t take_best(int32_t* key, int64_t count) {
  int32_t best = kTaken;
  for (int64_t i = 0; i < count; ++i) best = key[i] > best ? key[i] : best;
  if (best == kTaken) return -1;
  int32_t first = INT32_MAX;
  for (int32_t i = 0; i < static_cast<int32_t>(count); ++i) {
    const int32_t here = key[i] == best ? i : INT32_MAX;
    first = here < first ? here : first;
  }
  key[first] = kTaken;
  return first;
}

// Integers in the order of the floats; -0 equals 0.
void make_keys(Row& row) {
  for (size_t e = 0; e < row.key.size(); ++e) {
    const int32_t bits = bit_cast<int32_t>(row.rank_by[e] + 0.0f);
    const int32_t key = bits ^ ((bits >> 31) & 0x7fffffff);
    row.key[e] = row.rank_by[e] == kForbidden ? kTaken : key;
  }
}

// The ids in [begin, end) from best to worst, at most `count`, ties to the lower id. Forbidden ones and
// those taken before are not there. Returns how many there are.
int64_t best_first(Row& row, int64_t begin, int64_t end, int64_t count, int32_t* ids) {
  if (count <= kRoundsColumns) {
    for (int64_t found = 0; found < count; ++found) {
      const int64_t best = take_best(row.key.data() + begin, end - begin);
      if (best < 0) return found;
      ids[found] = static_cast<int32_t>(begin + best);
    }
    return count;
  }
  std::vector<int32_t> all;
  for (int64_t e = begin; e < end; ++e) {
    if (row.key[e] != kTaken) all.push_back(static_cast<int32_t>(e));
  }
  const int64_t found = std::min<int64_t>(count, all.size());
  std::partial_sort(all.begin(), all.begin() + found, all.end(),
                    [&](int32_t a, int32_t b) { return row.key[a] != row.key[b] ? row.key[a] > row.key[b] : a < b; });
  for (int64_t i = 0; i < found; ++i) row.key[ids[i] = all[i]] = kTaken;
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
  make_keys(row);
  const int64_t ranked = config.expand == Expand::rank ? config.columns : config.top_k;
  const int64_t found = best_first(row, 0, config.num_experts, ranked, row.order.data());
  if (config.expand != Expand::local) return found;
  return found +
         best_first(row, config.local_start, config.local_stop, config.columns - found, row.order.data() + found);
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
