// gate and select by one block, for few tokens: what lies between them stays in shared memory.
#pragma once

#include "gate_row.cuh"
#include "select_kernel.cuh"

namespace capmoe::cuda {

constexpr int kRouteWarps = select_threads(1) / 32;  // at most

// A piece of shared memory for `count` values of four bytes; pieces keep to 16 bytes.
__host__ __device__ inline int take_words(int& end, int64_t count) {
  const int start = end;
  end += static_cast<int>((count + 3) / 4 * 4);
  return start;
}

// Where things lie in dynamic shared memory, in words of four bytes.
struct RouteMemory {
  int ids, weights, scores;      // [T, K]
  int asks, top, slots, keys;    // as in Marks and SelectProblem
  int mask, counters, offsets;
  int lists, bins, partial;      // as in TeamMemory
  int gate, gate_words;          // [warps][gate_words]
  int words;

  __host__ __device__ RouteMemory(const Select& select, int warps, int64_t gate_bytes) {
    const int64_t tokens = select.tokens, row_words = (tokens + 31) / 32, pairs = tokens * select.columns;
    const bool bounded = capacity_of(select, tokens) < tokens;
    words = 0;
    ids = take_words(words, pairs);
    weights = take_words(words, pairs);
    scores = take_words(words, pairs);
    asks = take_words(words, select.num_experts * row_words);
    top = take_words(words, select.top_k < select.columns ? select.num_experts * row_words : 0);
    slots = take_words(words, 2 * select.num_experts * row_words);
    keys = take_words(words, bounded && select.policy == Policy::score ? select.num_experts * tokens : 0);
    mask = take_words(words, row_words);
    counters = take_words(words, kSelectCounters);
    offsets = take_words(words, select.num_experts + 1);
    lists = take_words(words, bounded ? warps * tokens : 0);
    bins = take_words(words, bounded ? warps * kBins : 0);
    partial = take_words(words, kRouteWarps + 3);
    gate_words = static_cast<int>(gate_bytes / 4);
    gate = take_words(words, int64_t{warps} * gate_words);
  }
};

// A column of the gate, into the block's candidates and marks.
struct RouteColumn {
  const Select& select;
  const Marks& marks;
  int32_t* ids;
  float *weights, *scores;
  int first_token;  // of the warp's rows

  __device__ __forceinline__ void operator()(int row, int column, int expert, float weight, float score) const {
    const int token = first_token + row, tokens = static_cast<int>(select.tokens);
    const int at = token * static_cast<int>(select.columns) + column;
    ids[at] = expert;
    weights[at] = weight;
    scores[at] = score;
    if (expert >= select.num_experts) return;
    const int word = expert * ((tokens + 31) / 32) + token / 32;
    atomicOr(&marks.asks[word], 1u << (token % 32));
    if (marks.top != nullptr && column < select.top_k) atomicOr(&marks.top[word], 1u << (token % 32));
    if (marks.keys != nullptr) marks.keys[expert * tokens + token] = order_key(score);
  }
};

// Fills `problem` and clears the marks.
__device__ inline void start_route(SelectProblem<int32_t>* problem, const RouteMemory& at, uint32_t* memory,
                                   const bool* token_mask, const int64_t* token_priority, const Select& select,
                                   const Selection& out) {
  for (int i = at.asks + threadIdx.x; i < at.slots; i += blockDim.x) memory[i] = 0;
  if (threadIdx.x < kSelectCounters) memory[at.counters + threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    const Marks marks{memory + at.asks, at.top == at.slots ? nullptr : memory + at.top,
                      at.keys == at.mask ? nullptr : memory + at.keys, memory + at.counters, false};
    auto* floats = reinterpret_cast<float*>(memory);
    *problem = select_problem(reinterpret_cast<int32_t*>(memory) + at.ids, floats + at.weights, floats + at.scores,
                              token_mask, token_priority, select, marks,
                              reinterpret_cast<SlotWord*>(memory + at.slots), memory + at.mask, out);
  }
  __syncthreads();
}

// One copy serves every gate: `problem` lies in shared memory.
__device__ __noinline__ void select_in_block(const SelectProblem<int32_t>& problem, const TeamMemory& memory,
                                             int* offsets) {
  select_tokens<1>(problem, memory, offsets);
}

template <class T, class Layout, bool kByScore>
__device__ void route_tokens(const T* logits, const float* bias, const Gate& gate, const bool* token_mask,
                             const int64_t* token_priority, const Select& select, const Selection& out) {
  extern __shared__ uint4 route_memory[];
  __shared__ SelectProblem<int32_t> problem;
  __shared__ TeamMemory teams;
  auto* memory = reinterpret_cast<uint32_t*>(route_memory);
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, tokens = static_cast<int>(select.tokens);
  const RouteMemory at(select, warps, gate_scratch_bytes<Layout>(gate));
  if (threadIdx.x == 0) {
    teams = {memory + at.bins, memory + at.lists, tokens, reinterpret_cast<int*>(memory) + at.partial};
  }
  start_route(&problem, at, memory, token_mask, token_priority, select, out);
  auto* floats = reinterpret_cast<float*>(memory);
  for (int first = warp * Layout::kRows; first < tokens; first += warps * Layout::kRows) {
    const RouteColumn write{select,  problem.marks,       reinterpret_cast<int32_t*>(memory) + at.ids,
                            floats + at.weights, floats + at.scores, first};
    gate_rows<T, Layout, kByScore>(logits + int64_t{first} * gate.num_experts, bias, gate,
                                   min(Layout::kRows, tokens - first), memory + at.gate + warp * at.gate_words, write);
  }
  __syncthreads();
  select_in_block(problem, teams, reinterpret_cast<int*>(memory) + at.offsets);
}

template <class T, class Layout, bool kByScore>
__global__ void __launch_bounds__(32 * kRouteWarps)
    route_kernel(const T* logits, const float* bias, const __grid_constant__ Gate gate, const bool* token_mask,
                 const int64_t* token_priority, const __grid_constant__ Select select,
                 const __grid_constant__ Selection out) {
  route_tokens<T, Layout, kByScore>(logits, bias, gate, token_mask, token_priority, select, out);
}

}  // namespace capmoe::cuda
