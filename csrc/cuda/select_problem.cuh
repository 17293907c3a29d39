// What select's phases share: the arguments, and what can be read off them.
#pragma once

#include "common.cuh"
#include "kernels.h"

namespace capmoe::cuda {

// What an expert keeps of 32 tokens.
struct alignas(8) SlotWord {
  uint32_t kept;    // bit t % 32: token t is kept
  uint32_t before;  // tokens kept in earlier words
};

constexpr int kPairsPerThread = 4;

// Tokens that a block takes at a time: so many that their pairs, too, come in fours.
__host__ __device__ inline int chunk_tokens(int threads, int columns) {
  const int tokens = columns < 1 ? threads : kPairsPerThread * threads / columns;
  return tokens < 4 ? 4 : tokens / 4 * 4;
}

// What experts that share one may keep of so many real tokens; more than int holds is no bound.
__host__ __device__ inline int budget_among(const Select& config, int64_t tokens) {
  const int64_t budget = capacity_of(config, tokens) * config.unit;
  return budget < INT32_MAX ? static_cast<int>(budget) : INT32_MAX;
}

template <class Id>
struct SelectProblem {
  static constexpr bool kWarpsSuffice = false;  // whether a warp can list whatever asks for one budget

  const Id* ids;                  // [T, K]
  const float* weights;           // [T, K]
  const float* scores;            // [T, K]
  const bool* token_mask;         // [T] or null
  const int64_t* token_priority;  // [T] or null
  Select config;
  Marks marks;
  SlotWord* slots;       // [E][W]
  uint32_t* mask_words;  // [W]: token_mask in bits
  Selection out;
  int tokens, columns, experts, words, unit, rows;
  int chunk;       // tokens that a block of 256 threads takes at a time
  int budget;      // of `unit` experts, where all tokens are real
  bool rerouting;  // tokens ask in rounds
  bool aligned;    // four columns of a token may be loaded and stored at once, where there are four
  bool plain;      // so may any four pairs, for nothing but the slots decides about them

  __device__ bool masked() const { return token_mask != nullptr; }
  __device__ bool reroutes() const { return rerouting; }
  __device__ bool limits_tokens() const { return config.max_per_token < config.columns; }
  // Whether nothing but score, position or hash ranks the pairs.
  __device__ bool ranks_by_policy_only() const {
    return token_priority == nullptr && !(config.topk_first && marks.top != nullptr);
  }

  __device__ int sharing() const { return unit; }  // experts that share a budget
  __device__ int budget_of(int64_t real) const { return budget_among(config, real); }
  __device__ size_t word(int expert, int word) const { return size_t(expert) * words + word; }
  __device__ size_t pair(int token, int column) const { return size_t(token) * columns + column; }
  __device__ bool real(int token) const { return token_mask == nullptr || token_mask[token]; }

  // Whether asks and keys are on cards; whether nobody looks at the asks once they are numbered.
  __device__ bool on_cards() const { return false; }
  __device__ bool decides_once() const { return false; }

  // The expert of a column, or -1 where it is unused: out of range, or listed before.
  __device__ int expert_of(int token, int column) const {
    const Id* row = ids + pair(token, 0);
    const Id id = row[column];
    if (id < 0 || id >= experts) return -1;
    if (marks.repeats) {
      for (int j = 0; j < column; ++j) {
        if (row[j] == id) return -1;
      }
    }
    return static_cast<int>(id);
  }
};

// The same where every expert decides once, on all tokens that ask, by the policy alone: nothing else is compiled.
template <class Id>
struct SimpleProblem : SelectProblem<Id> {
  __device__ bool masked() const { return false; }
  __device__ bool reroutes() const { return false; }
  __device__ bool limits_tokens() const { return false; }
  __device__ bool ranks_by_policy_only() const { return true; }
  __device__ int sharing() const { return 1; }
  __device__ bool on_cards() const { return this->marks.cards != nullptr; }
  __device__ bool decides_once() const { return true; }
};

// Whether it is a SimpleProblem.
inline bool is_simple(const Select& config, bool masked, bool prioritised) {
  return !masked && !prioritised && config.reroute_rounds == 1 && config.max_per_token >= config.columns &&
         config.unit == 1 && !config.topk_first;
}

template <class Id>
__host__ __device__ SelectProblem<Id> select_problem(const Id* ids, const float* weights, const float* scores,
                                                     const bool* token_mask, const int64_t* token_priority,
                                                     const Select& config, const Marks& marks, SlotWord* slots,
                                                     uint32_t* mask_words, const Selection& out) {
  const int tokens = static_cast<int>(config.tokens), experts = static_cast<int>(config.num_experts);
  const uintptr_t places = reinterpret_cast<uintptr_t>(ids) | reinterpret_cast<uintptr_t>(weights) |
                           reinterpret_cast<uintptr_t>(out.expert_ids) | reinterpret_cast<uintptr_t>(out.weights) |
                           reinterpret_cast<uintptr_t>(out.rows);
  const bool aligned = places % 16 == 0, rerouting = config.reroute_rounds > 1;
  const bool plain = aligned && token_mask == nullptr && !rerouting && !marks.repeats;
  return {ids,
          weights,
          scores,
          token_mask,
          token_priority,
          config,
          marks,
          slots,
          mask_words,
          out,
          tokens,
          static_cast<int>(config.columns),
          experts,
          (tokens + 31) / 32,
          static_cast<int>(config.unit),
          static_cast<int>(config.rows),
          chunk_tokens(256, static_cast<int>(config.columns)),
          budget_among(config, tokens),
          rerouting,
          aligned,
          plain};
}

// Slots of Marks::counters.
enum SelectCounter { kArrivals, kRealTokens, kFreshAsks };

}  // namespace capmoe::cuda
