// What each step of the layer is asked to do, in plain numbers: the same for every backend.
//
// Sizes in shape comments: T tokens, E experts, K candidate columns, N rows of the packed buffer.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CAPMOE_HOST_DEVICE __host__ __device__
#else
#define CAPMOE_HOST_DEVICE
#endif

namespace capmoe {

enum class Expand { none, local, rank };
enum class Renormalize { none, topk, kept };
enum class Policy { score, keep_first, keep_last, random };

struct Gate {
  int64_t tokens, num_experts, columns, top_k;
  int64_t num_groups, topk_groups;
  int64_t local_start, local_stop;
  Expand expand;
  Renormalize renormalize;
  bool sigmoid;         // else softmax over all experts
  bool top2_sum;        // a group's score is the sum of its two best, else its best
  bool drop_by_weight;  // `scores` is the score over the sum of the top-k's, else the plain score
  float scaling;
};

// How many tokens an expert may keep. A factor is numerator / denominator.
struct Bound {
  int64_t numerator, denominator;  // denominator 0: no factor
  int64_t limit;                   // an explicit C, which the factor does not touch; -1: none
  bool ceil;                       // else rounded down
};

struct Select {
  int64_t tokens, columns, num_experts, top_k;
  Bound bound;
  int64_t unit;            // experts that share one capacity: 1, or the experts of a device
  int64_t max_per_token;   // experts a token may keep; `columns` where unlimited
  int64_t reroute_rounds;  // 1: no second choice
  int64_t row_alignment;
  int64_t padded_rows;  // rows of each expert in the padded layout; -1 for the packed one
  int64_t rows;         // N
  Policy policy;
  bool topk_first;  // a top-k candidate outranks an extra one
  uint64_t seed;
  float kept_weight_sum;  // rescale a token's kept weights to this sum; negative: leave them
};

// min(C, tokens) in exact integers, tokens being the real ones: host_capacity() of capmoe_kernels/bounds.py.
CAPMOE_HOST_DEVICE inline int64_t capacity_of(const Select& config, int64_t tokens) {
  const Bound& bound = config.bound;
  int64_t capacity = bound.limit;
  if (capacity < 0 && bound.denominator == 0) return tokens;
  if (capacity < 0) {
    const int64_t denominator = bound.denominator * config.num_experts;
    capacity = (bound.numerator * config.top_k * tokens + (bound.ceil ? denominator - 1 : 0)) / denominator;
  }
  return capacity < tokens ? capacity : tokens;
}

struct Selection {
  int32_t* expert_ids;         // [T, K], num_experts where the column is unused
  float* weights;              // [T, K], 0 where dropped or unused
  int32_t* rows;               // [T, K], -1 where dropped or unused
  int32_t* row_tokens;         // [N], -1 where the row is padding
  int32_t* expert_offsets;     // [E + 1]
  int32_t* tokens_per_expert;  // [E]
  int32_t* demand_per_expert;  // [E]
};

enum class Activation { silu, gelu, gelu_tanh, swigluoai, relu, relu2 };

struct GroupedMlp {
  int64_t num_experts, hidden, intermediate;
  Activation activation;
  bool gated;        // gate_up_proj is [E, 2F, H] and h = act(gate) * up, else [E, F, H] and h = act(up)
  bool interleaved;  // gated: rows of gate_up_proj alternate gate, up; else all gate rows, then all up rows
  bool packed;       // csrc/cpu/packed.h; F is a multiple of 16, and biases are concatenated
};

}  // namespace capmoe
