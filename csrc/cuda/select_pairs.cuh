// The outputs of a token's pairs, a few at a time.
#pragma once

#include <type_traits>

#include "select_problem.cuh"

namespace capmoe::cuda {

// kCount consecutive values of an array, in one access where there are four.
template <class T, int kCount>
__device__ __forceinline__ void load_each(const T* from, T (&values)[kCount]) {
  if constexpr (kCount == 1) {
    values[0] = *from;
  } else if constexpr (sizeof(T) == 4) {
    *reinterpret_cast<uint4*>(values) = *reinterpret_cast<const uint4*>(from);
  } else {
    reinterpret_cast<uint4*>(values)[0] = reinterpret_cast<const uint4*>(from)[0];
    reinterpret_cast<uint4*>(values)[1] = reinterpret_cast<const uint4*>(from)[1];
  }
}

template <class T, int kCount>
__device__ __forceinline__ void store_each(T* to, const T (&values)[kCount]) {
  if constexpr (kCount == 1) {
    *to = values[0];
  } else {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(values);
  }
}

// The row of a token at an expert that keeps it, else -1.
__device__ __forceinline__ int row_of(SlotWord slot, int offset, int token) {
  const uint32_t bit = 1u << (token % 32);
  if ((slot.kept & bit) == 0) return -1;
  return offset + static_cast<int>(slot.before) + __popc(slot.kept & (bit - 1));
}

// Of a caller's own buffer size, unsigned: -1 is beyond it.
template <class Problem>
__device__ __forceinline__ void store_token(const Problem& problem, int row, int token) {
  if (static_cast<unsigned>(row) < static_cast<unsigned>(problem.rows)) problem.out.row_tokens[row] = token;
}

template <class Id>
__device__ __forceinline__ bool is_expert(const SelectProblem<Id>& problem, Id id) {
  using Unsigned = std::make_unsigned_t<Id>;  // beyond which negative ids are
  return static_cast<Unsigned>(id) < static_cast<Unsigned>(problem.experts);
}

// Which of a token's columns [column, column + kCount) list an expert that an earlier column lists.
template <int kCount, class Id>
__device__ __forceinline__ void find_repeats(const Id* row, int column, const Id (&ids)[kCount],
                                             bool (&repeats)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    repeats[i] = false;
#pragma unroll
    for (int k = 0; k < i; ++k) repeats[i] |= ids[i] == ids[k];
  }
#pragma unroll 1
  for (int j = 0; j < column; j += kCount) {
    alignas(16) Id earlier[kCount];
    load_each(row + j, earlier);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) repeats[i] |= ids[i] == earlier[k];
    }
  }
}

// Experts, weights and rows of a token's columns [column, column + kCount), and the rows' tokens. slot_of(expert, word)
// is what select has decided.
template <int kCount, class Id, class SlotOf>
__device__ __forceinline__ void finish_pairs(const SelectProblem<Id>& problem, const int* offsets, int token,
                                             int column, SlotOf slot_of) {
  const size_t pair = problem.pair(token, column);
  alignas(16) Id ids[kCount];
  alignas(16) int experts[kCount], rows[kCount];
  alignas(16) float weights[kCount];
  load_each(problem.ids + pair, ids);
  load_each(problem.weights + pair, weights);
  if (problem.reroutes()) load_each(problem.out.rows + pair, rows);
  bool repeats[kCount] = {};
  if (problem.marks.repeats) find_repeats(problem.ids + problem.pair(token, 0), column, ids, repeats);
  const bool real = problem.real(token);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const bool used = real && !repeats[i] && is_expert(problem, ids[i]);
    const bool asked = used && !(problem.reroutes() && rows[i] == 0);
    const int expert = asked ? static_cast<int>(ids[i]) : -1;
    const int row = expert < 0 ? -1 : row_of(slot_of(expert, token / 32), offsets[expert], token);
    experts[i] = expert < 0 ? problem.experts : expert;
    rows[i] = row;
    if (row < 0) weights[i] = 0.0f;
    store_token(problem, row, token);
  }
  store_each(problem.out.expert_ids + pair, experts);
  store_each(problem.out.weights + pair, weights);
  store_each(problem.out.rows + pair, rows);
}

// Four consecutive pairs from `pair` on, a token's from `column` on, or of it and the tokens behind: where neither mask
// nor repeats nor rerouting is asked for. All slots are fetched before anything is stored.
template <bool kOneToken, class Id, class SlotOf>
__device__ __forceinline__ void finish_four(const SelectProblem<Id>& problem, const int* offsets, size_t pair,
                                            int token, int column, SlotOf slot_of) {
  alignas(16) Id ids[4];
  alignas(16) int experts[4], rows[4];
  alignas(16) float weights[4];
  SlotWord slots[4];
  int tokens[4], offset[4];
  load_each(problem.ids + pair, ids);
  load_each(problem.weights + pair, weights);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    tokens[i] = token;
    const bool used = is_expert(problem, ids[i]);
    experts[i] = used ? static_cast<int>(ids[i]) : problem.experts;
    slots[i] = {0, 0};
    offset[i] = offsets[experts[i]];
    if (used) slots[i] = slot_of(experts[i], token / 32);
    if (!kOneToken && ++column == problem.columns) {
      column = 0;
      ++token;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    rows[i] = row_of(slots[i], offset[i], tokens[i]);
    if (rows[i] < 0) weights[i] = 0.0f;
    store_token(problem, rows[i], tokens[i]);
  }
  store_each(problem.out.expert_ids + pair, experts);
  store_each(problem.out.weights + pair, weights);
  store_each(problem.out.rows + pair, rows);
}

}  // namespace capmoe::cuda
