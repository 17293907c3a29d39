// What select does token by token between and after the budgets.
#pragma once

#include "select_problem.cuh"

namespace capmoe::cuda {

// Other threads change other bits of the word meanwhile.
template <class Problem>
__device__ bool asks_now(const Problem& problem, int token, int expert) {
  const volatile uint32_t* word = problem.marks.asks + problem.word(expert, token / 32);
  return *word >> (token % 32) & 1;
}

// token_mask in bits, and how many tokens are real.
template <class Problem>
__device__ void read_mask(const Problem& problem) {
  int real = 0;
  const int lane = threadIdx.x % 32, warps = gridDim.x * blockDim.x / 32;
  for (int word = (blockIdx.x * blockDim.x + threadIdx.x) / 32; word < problem.words; word += warps) {
    const int token = word * 32 + lane;
    const uint32_t bits = __ballot_sync(0xffffffffu, token < problem.tokens && problem.token_mask[token]);
    if (lane == 0) problem.mask_words[word] = bits;
    real += __popc(bits);
  }
  if (lane == 0 && real > 0) atomicAdd(&problem.marks.counters[kRealTokens], real);
}

// Token Reroute: a token that holds fewer than top_k asks the best experts it has not asked. out.rows says which it
// has.
template <class Problem>
__device__ bool ask_on(const Problem& problem, int token, bool first_round) {
  int wanted = static_cast<int>(problem.config.top_k);
  int32_t* asked = problem.out.rows + problem.pair(token, 0);
  for (int j = 0; j < problem.columns; ++j) {
    if (first_round) {
      asked[j] = 0;
      continue;
    }
    const int expert = problem.expert_of(token, j);
    if (asked[j] && asks_now(problem, token, expert)) --wanted;
  }
  bool any = false;
  for (int j = 0; j < problem.columns && wanted > 0 && problem.real(token); ++j) {
    const int expert = problem.expert_of(token, j);
    if (expert < 0 || asked[j]) continue;
    asked[j] = any = true;
    atomicOr(&problem.marks.asks[problem.word(expert, token / 32)], 1u << (token % 32));
    --wanted;
  }
  return any;
}

// True in every thread of the grid, after the next barrier, where kFreshAsks has grown.
template <class Problem>
__device__ void ask_on(const Problem& problem, bool first_round) {
  bool any = false;
#pragma unroll 1
  for (int token = blockIdx.x * blockDim.x + threadIdx.x; token < problem.tokens; token += gridDim.x * blockDim.x) {
    any |= ask_on(problem, token, first_round);
  }
  if (__syncthreads_or(any) && threadIdx.x == 0) atomicAdd(&problem.marks.counters[kFreshAsks], 1);
}

// How many of a token's kept pairs come before column j: higher score, then lower expert.
template <class Problem>
__device__ int rank_in_token(const Problem& problem, int token, int j, int expert) {
  const float* scores = problem.scores + problem.pair(token, 0);
  const uint32_t own = order_key(scores[j]);
  int rank = 0;
  for (int other = 0; other < problem.columns; ++other) {
    const int rival = other == j ? -1 : problem.expert_of(token, other);
    if (rival < 0 || !asks_now(problem, token, rival)) continue;
    const uint32_t key = order_key(scores[other]);
    rank += key > own || (key == own && rival < expert);
  }
  return rank;
}

// Leaves each token its max_per_token best kept experts. A pair that is cleared before its rivals have looked is beyond
// the limit, and so is then every pair behind it: the order of clearing does not show.
template <class Problem>
__device__ void limit_per_token(const Problem& problem) {
#pragma unroll 1
  for (int token = blockIdx.x * blockDim.x + threadIdx.x; token < problem.tokens; token += gridDim.x * blockDim.x) {
    for (int j = 0; j < problem.columns; ++j) {
      const int expert = problem.expert_of(token, j);
      if (expert < 0 || !asks_now(problem, token, expert)) continue;
      if (rank_in_token(problem, token, j, expert) < problem.config.max_per_token) continue;
      atomicAnd(&problem.marks.asks[problem.word(expert, token / 32)], ~(1u << (token % 32)));
    }
  }
}

}  // namespace capmoe::cuda
