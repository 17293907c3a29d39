// gate and select by one block, for few tokens: what lies between them stays in shared memory.
#pragma once

#include "gate_row.cuh"
#include "select_kernel.cuh"

namespace capmoe::cuda {

constexpr int kRouteWarps = 8;  // at most

// A piece of shared memory for `count` values of four bytes; pieces keep to 16 bytes.
__host__ __device__ inline int take_words(int& end, int64_t count) {
  const int start = end;
  end += static_cast<int>((count + 3) / 4 * 4);
  return start;
}

// What the host works out: where things lie in dynamic shared memory, in words of four bytes, and a few numbers.
struct RoutePlan {
  int ids, weights, scores;          // [T, K]
  int asks, top, slots, keys;        // as in Marks and SelectProblem
  int mask, counters, offsets;       // offsets [E + 1]
  int lists, listed, bins, partial;  // as in TeamMemory
  int gate, gate_words;              // [warps][gate_words]
  int words;                         // in all
  int capacity;                      // of all T tokens; where it is exceeded, select decides
  bool general;                      // select decides in any case

  __host__ __device__ RoutePlan(const Select& select, bool masked, int warps, int64_t gate_bytes) {
    const int64_t tokens = select.tokens, row_words = (tokens + 31) / 32, pairs = tokens * select.columns;
    capacity = static_cast<int>(capacity_of(select, tokens));
    const bool bounded = capacity < tokens;
    general =
        select.reroute_rounds > 1 || select.max_per_token < select.columns || (bounded && (masked || select.unit > 1));
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
    listed = static_cast<int>(pairs);  // no budget has more
    lists = take_words(words, bounded ? warps * pairs : 0);
    bins = take_words(words, bounded ? warps * kBins : 0);
    partial = take_words(words, 2 * kRouteWarps + 3);
    gate_words = static_cast<int>(gate_bytes / 4);
    gate = take_words(words, int64_t{warps} * gate_words);
  }
};

// The block's candidates and who asks, all in shared memory.
struct RouteState {
  const Select& select;
  const RoutePlan& at;
  uint32_t* memory;
  const bool* token_mask;
  const int64_t* token_priority;
  const Selection& out;
  int tokens, columns, experts, row_words;

  __device__ RouteState(const Select& select, const RoutePlan& at, uint32_t* memory, const bool* token_mask,
                        const int64_t* token_priority, const Selection& out)
      : select(select),
        at(at),
        memory(memory),
        token_mask(token_mask),
        token_priority(token_priority),
        out(out),
        tokens(static_cast<int>(select.tokens)),
        columns(static_cast<int>(select.columns)),
        experts(static_cast<int>(select.num_experts)),
        row_words((tokens + 31) / 32) {}

  __device__ int32_t* ids() const { return reinterpret_cast<int32_t*>(memory) + at.ids; }
  __device__ float* weights() const { return reinterpret_cast<float*>(memory) + at.weights; }
  __device__ float* scores() const { return reinterpret_cast<float*>(memory) + at.scores; }
  __device__ int* offsets() const { return reinterpret_cast<int*>(memory) + at.offsets; }
  __device__ uint32_t* asks() const { return memory + at.asks; }
  __device__ uint32_t* top() const { return at.top == at.slots ? nullptr : memory + at.top; }
  __device__ uint32_t* keys() const { return at.keys == at.mask ? nullptr : memory + at.keys; }
};

// A column of the gate, among the candidates and marks; padding has none.
struct RouteColumn {
  const RouteState& state;
  int first_token;  // of the warp's rows

  // Columns of a row that a lane has.
  template <int kColumns>
  __device__ __forceinline__ void operator()(bool is_row, const int (&experts)[kColumns],
                                             const float (&weights)[kColumns], const float (&scores)[kColumns]) const {
    if (!is_row) return;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) (*this)(lane_id(), j, experts[j], weights[j], scores[j]);
  }

  __device__ __forceinline__ void operator()(int row, int column, int expert, float weight, float score) const {
    const int token = first_token + row, pair = token * state.columns + column;
    if (state.token_mask != nullptr && !state.token_mask[token]) expert = state.experts;
    state.ids()[pair] = expert;
    state.weights()[pair] = weight;
    state.scores()[pair] = score;
    if (expert >= state.experts) return;
    const int word = expert * state.row_words + token / 32;
    const uint32_t bit = 1u << (token % 32);
    atomicOr(state.asks() + word, bit);
    if (state.top() != nullptr && column < state.select.top_k) atomicOr(state.top() + word, bit);
    if (state.keys() != nullptr) state.keys()[expert * state.tokens + token] = order_key(score);
  }
};

// No marks, and no row has a token yet.
__device__ inline void clear_route(const RouteState& state) {
  for (int i = state.at.asks + threadIdx.x; i < state.at.slots; i += blockDim.x) state.memory[i] = 0;
  if (threadIdx.x < kSelectCounters) state.memory[state.at.counters + threadIdx.x] = 0;
  for (int row = threadIdx.x; row < state.select.rows; row += blockDim.x) state.out.row_tokens[row] = -1;
}

// Counts and offsets, by a warp, as if everyone stayed; true where a capacity is exceeded.
__device__ inline bool count_experts(const RouteState& state) {
  const int each = (state.experts + 31) / 32, first = lane_id() * each, last = min(first + each, state.experts);
  const int align = static_cast<int>(state.select.row_alignment), padded = static_cast<int>(state.select.padded_rows);
  int own = 0, most = 0;
  for (int expert = first; expert < last; ++expert) {
    int count = 0, demand = 0;
    for (int i = expert * state.row_words; i < (expert + 1) * state.row_words; ++i) {
      const uint32_t asks = state.asks()[i];
      count += __popc(asks);
      demand += __popc(state.top() == nullptr ? asks : asks & state.top()[i]);
    }
    state.out.tokens_per_expert[expert] = count;
    state.out.demand_per_expert[expert] = demand;
    state.offsets()[expert] = own;
    own += padded >= 0 ? padded : align == 1 ? count : (count + align - 1) / align * align;
    most = max(most, count);
  }
  const int through = warp_inclusive_scan(own);
  for (int expert = first; expert < last; ++expert) {
    const int offset = state.offsets()[expert] + through - own;
    state.offsets()[expert] = offset;
    state.out.expert_offsets[expert] = offset;
  }
  if (lane_id() == 31) state.out.expert_offsets[state.experts] = through;
  return __any_sync(kWholeWarp, most > state.at.capacity);
}

// Every pair's outputs where everyone stays.
__device__ inline void keep_all(const RouteState& state) {
  if (state.select.kept_weight_sum >= 0) {
    for (int i = threadIdx.x; i < state.tokens * state.columns; i += blockDim.x) {
      if (state.ids()[i] == state.experts) state.weights()[i] = 0.0f;
    }
    __syncthreads();
    for (int token = threadIdx.x; token < state.tokens; token += blockDim.x) {
      renormalize(state.select, state.weights() + token * state.columns, state.columns);
    }
    __syncthreads();
  }
  // i / columns is __umulhi(i, inverse): both are small.
  const unsigned inverse = state.columns > 1 ? 0xffffffffu / state.columns + 1 : 0;
  for (int i = threadIdx.x; i < state.tokens * state.columns; i += blockDim.x) {
    const int token = state.columns > 1 ? static_cast<int>(__umulhi(i, inverse)) : i;
    const int expert = state.ids()[i];
    const bool used = expert < state.experts;
    int row = -1;
    if (used) {
      const uint32_t* asks = state.asks() + expert * state.row_words;
      row = state.offsets()[expert] + __popc(asks[token / 32] & ((1u << (token % 32)) - 1));
      for (int word = 0; word < token / 32; ++word) row += __popc(asks[word]);
      if (row < state.select.rows) state.out.row_tokens[row] = token;
    }
    state.out.expert_ids[i] = expert;
    state.out.weights[i] = used ? state.weights()[i] : 0.0f;
    state.out.rows[i] = row;
  }
}

struct RouteProblem : SelectProblem<int32_t> {
  static constexpr bool kWarpsSuffice = true;  // each lists as many as there are pairs
};

// One copy of select serves every gate: its arguments lie in shared memory.
__device__ __noinline__ void select_in_block(const RouteProblem& problem, const TeamMemory& memory, int* offsets) {
  select_tokens<kRouteWarps>(problem, memory, offsets);
}

__device__ __forceinline__ void decide_in_block(const RouteState& state) {
  __shared__ RouteProblem problem;
  __shared__ TeamMemory teams;
  uint32_t* memory = state.memory;
  const RoutePlan& at = state.at;
  if (threadIdx.x == 0) {
    const Marks marks{state.asks(), state.top(), state.keys(), nullptr, memory + at.counters, false};
    problem = {select_problem(static_cast<const int32_t*>(state.ids()), state.weights(), state.scores(),
                              state.token_mask, state.token_priority, state.select, marks,
                              reinterpret_cast<SlotWord*>(memory + at.slots), memory + at.mask, state.out)};
    teams = {memory + at.bins, memory + at.lists, at.listed, reinterpret_cast<int*>(memory) + at.partial};
  }
  __syncthreads();
  select_in_block(problem, teams, state.offsets());
}

template <class T, class Layout, bool kByScore>
__device__ __forceinline__ void route_tokens(const T* logits, const float* bias, const Gate& gate,
                                             const RouteState& state) {
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  clear_route(state);
  __syncthreads();
  for (int first = warp * Layout::kRows; first < state.tokens; first += warps * Layout::kRows) {
    gate_rows<T, Layout, kByScore>(
        logits + int64_t{first} * state.experts, bias, gate, min(Layout::kRows, state.tokens - first),
        state.memory + state.at.gate + warp * state.at.gate_words, RouteColumn{state, first});
  }
  __syncthreads();
  bool decides = state.at.general;
  if (!decides) decides = __syncthreads_or(threadIdx.x < 32 && count_experts(state));
  if (decides) {
    decide_in_block(state);
  } else {
    keep_all(state);
  }
}

template <class T, class Layout, bool kByScore>
__global__ void __launch_bounds__(32 * kRouteWarps, 1)
    route_kernel(const T* logits, const float* bias, const __grid_constant__ Gate gate, const bool* token_mask,
                 const int64_t* token_priority, const __grid_constant__ Select select,
                 const __grid_constant__ Selection out, const __grid_constant__ RoutePlan plan) {
  extern __shared__ uint4 route_memory[];
  const RouteState state(select, plan, reinterpret_cast<uint32_t*>(route_memory), token_mask, token_priority, out);
  route_tokens<T, Layout, kByScore>(logits, bias, gate, state);
}

}  // namespace capmoe::cuda
