// The gate, a batch of tokens at a time: include inside the target region of one file, after defining CAPMOE_LANES.
#pragma once

#include <algorithm>
#include <type_traits>

#include "gate.h"
#include "gate_best.h"
#include "gate_groups.h"
#include "gate_scores.h"

namespace capmoe::cpu {
namespace {

// Scores and keys of the t-th token of a batch.
template <class T>
void score_token(const GateArgs<T>& args, const GateBatch& batch, const T* row, int64_t t) {
  const Gate& config = args.config;
  const int64_t count = config.num_experts;
  float *logits = batch.logits + t * batch.stride, *scores = batch.scores + t * batch.stride;
  int32_t* keys = batch.keys + t * batch.stride;
  load_row(row, count, logits);
  const float largest = rank_logits(logits, count, keys);
  batch.divisor[t] = 1.0f;
  if (config.sigmoid) {
    sigmoid(logits, count, scores);
  } else {
    batch.divisor[t] = softmax(logits, largest, count, scores);
  }
  if (args.bias == nullptr && config.num_groups == 1) return;
  divide(scores, batch.divisor[t], count);
  batch.divisor[t] = 1.0f;
  if (args.bias != nullptr) rank_biased(logits, scores, args.bias, count, keys);
  if (config.num_groups > 1) limit_groups(config, args.bias != nullptr, keys, scores, batch.groups);
}

// take(tokens..., first) for all tokens of a batch, kTokens at once: one's arithmetic fills the waits of the others.
template <int kTokens, class Take>
inline void in_turns(int64_t tokens, const Take& take) {
  int64_t t = 0;
  for (; t + kTokens <= tokens; t += kTokens) take(std::integral_constant<int, kTokens>{}, t);
  for (; t < tokens; ++t) take(std::integral_constant<int, 1>{}, t);
}

// The best `wanted` of tokens [0, tokens) of a batch, whose keys lie in kCount vectors.
template <int kCount>
void choose_of_few(const GateBatch& batch, int64_t tokens, int64_t columns, int64_t wanted) {
  in_turns<2>(tokens, [&](auto together, int64_t first) {
    constexpr int kTokens = decltype(together)::value;
    const int32_t* rows[kTokens];
    int32_t* ids[kTokens];
    for (int i = 0; i < kTokens; ++i) {
      rows[i] = batch.keys + (first + i) * batch.stride;
      ids[i] = batch.ids + (first + i) * columns;
    }
    take_best<kCount, kTokens>(rows, wanted, ids, batch.found + first);
  });
}

// The same for any number of vectors, whose maxima lie in kCount vectors.
template <int kCount>
void choose_of_many(const GateBatch& batch, int64_t vectors, int64_t tokens, int64_t columns, int64_t wanted) {
  for (int64_t t = 0; t < tokens; ++t) {
    find_maxima(batch.keys + t * batch.stride, vectors, batch.maxima + t * batch.maxima_stride);
  }
  in_turns<4>(tokens, [&](auto together, int64_t first) {
    constexpr int kTokens = decltype(together)::value;
    int32_t *rows[kTokens], *maxima[kTokens], *ids[kTokens];
    for (int i = 0; i < kTokens; ++i) {
      rows[i] = batch.keys + (first + i) * batch.stride;
      maxima[i] = batch.maxima + (first + i) * batch.maxima_stride;
      ids[i] = batch.ids + (first + i) * columns;
    }
    take_best<kCount, kTokens>(rows, maxima, ceil_div(vectors, kLanes), wanted, ids, batch.found + first);
  });
}

void choose_best(const Gate& config, const GateBatch& batch, int64_t tokens, int64_t wanted) {
  const int64_t vectors = ceil_div(config.num_experts, kLanes);
  if (vectors == 1) return choose_of_few<1>(batch, tokens, config.columns, wanted);
  if (vectors == 2) return choose_of_few<2>(batch, tokens, config.columns, wanted);
  if (vectors == 3) return choose_of_few<3>(batch, tokens, config.columns, wanted);
  if (vectors == 4) return choose_of_few<4>(batch, tokens, config.columns, wanted);
  if (vectors <= kLanes) return choose_of_many<1>(batch, vectors, tokens, config.columns, wanted);
  choose_of_many<0>(batch, vectors, tokens, config.columns, wanted);
}

// Expanded Drop's experts, of those in the token's own place, that it hasn't chosen.
inline void choose_local(const Gate& config, const GateBatch& batch, int64_t t) {
  int32_t *keys = batch.keys + t * batch.stride, *ids = batch.ids + t * config.columns;
  int64_t& found = batch.found[t];
  for (int64_t j = 0; j < found; ++j) keys[ids[j]] = kTaken;
  std::fill(keys, keys + config.local_start, kTaken);
  std::fill(keys + config.local_stop, keys + config.num_experts, kTaken);
  const int64_t vectors = ceil_div(config.num_experts, kLanes);
  int32_t *maxima = batch.maxima + t * batch.maxima_stride, *more = ids + found;
  find_maxima(keys, vectors, maxima);
  int64_t others;
  take_best<0, 1>(&keys, &maxima, ceil_div(vectors, kLanes), config.columns - found, &more, &others);
  found += others;
}

// For the chosen pairs their scores and what these are to be divided by; unused columns are filled in.
inline void look_up(const Gate& config, const GateBatch& batch, int64_t t) {
  const int64_t columns = config.columns, found = batch.found[t];
  int32_t* ids = batch.ids + t * columns;
  float *chosen = batch.chosen + t * columns, *divide = batch.divide + t * columns;
  const float *scores = batch.scores + t * batch.stride, divisor = batch.divisor[t];
  for (int64_t j = 0; j < found; ++j) {
    chosen[j] = scores[ids[j]];
    divide[j] = divisor;
  }
  for (int64_t j = found; j < columns; ++j) {
    ids[j] = static_cast<int32_t>(config.num_experts);
    chosen[j] = 0.0f;
    divide[j] = 1.0f;
  }
}

// The sum of the top-k's scores, for each of the token's columns. In double, so that the order of addition does not
// show in float.
inline void sum_top(const Gate& config, const GateBatch& batch, int64_t t) {
  const float* chosen = batch.chosen + t * config.columns;
  double sum = 0;
  for (int64_t j = 0; j < config.top_k; ++j) sum += chosen[j];
  std::fill_n(batch.divide + t * config.columns, config.columns, static_cast<float>(std::max(sum, 1e-20)));
}

// A batch's results, of consecutive tokens: arrays without a structure, so that they are vectors.
void write_batch(const Gate& config, const GateBatch& batch, int64_t tokens, int32_t* ids, float* weights,
                 float* scores) {
  const int64_t pairs = tokens * config.columns;
  float *chosen = batch.chosen, *divide = batch.divide;
  std::copy_n(batch.ids, pairs, ids);
  for (int64_t i = 0; i < pairs; ++i) chosen[i] /= divide[i];
  // `kept` is left to select, which knows what was kept.
  const float scale = config.renormalize == Renormalize::kept ? 1.0f : config.scaling;
  const bool divided = config.renormalize == Renormalize::topk;
  const bool ranked = config.drop_by_weight && config.renormalize != Renormalize::none;
  if (divided || ranked) {
    for (int64_t t = 0; t < tokens; ++t) sum_top(config, batch, t);
  }
  for (int64_t i = 0; i < pairs; ++i) {
    const float score = chosen[i];
    weights[i] = score * scale;
    scores[i] = score;
  }
  for (int64_t i = 0; divided && i < pairs; ++i) weights[i] = chosen[i] / divide[i] * scale;
  for (int64_t i = 0; ranked && i < pairs; ++i) scores[i] = chosen[i] / divide[i];
}

template <class T>
void gate_batches(const GateArgs<T>& args, const GateBatch& batch, int64_t begin, int64_t end) {
  const Gate& config = args.config;
  for (int64_t first = begin; first < end; first += batch.tokens) {
    const int64_t tokens = std::min(batch.tokens, end - first);
    for (int64_t t = 0; t < tokens; ++t) {
      score_token(args, batch, args.logits + (first + t) * config.num_experts, t);
    }
    choose_best(config, batch, tokens, config.expand == Expand::rank ? config.columns : config.top_k);
    if (config.expand == Expand::local) {
      for (int64_t t = 0; t < tokens; ++t) choose_local(config, batch, t);
    }
    for (int64_t t = 0; t < tokens; ++t) look_up(config, batch, t);
    const int64_t at = first * config.columns;
    write_batch(config, batch, tokens, args.expert_ids + at, args.weights + at, args.scores + at);
  }
}

}  // namespace
}  // namespace capmoe::cpu
