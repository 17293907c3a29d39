// The CPU kernels: what each step of the layer computes, on plain pointers.
//
// Sizes in shape comments: T tokens, E experts, K candidate columns, N rows of the packed buffer, H hidden,
// F intermediate. All arrays are dense and row-major. Nothing here knows a tensor, and nothing here starts a
// thread: the caller passes `ParallelFor`, so that torch's thread count is obeyed. No result depends on how
// the range is cut.
#pragma once

#include <cstdint>
#include <functional>

namespace capmoe::cpu {

// Calls body(begin, end) over disjoint ranges that cover [0, count).
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t begin, int64_t end)>& body)>;

// The bits of a 16-bit float; to_float and from_float are in convert.h.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

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

// Scores, top-k and the candidates that Expanded Drop adds. logits [T, E]; bias [E] or null.
// Writes expert_ids, weights, scores [T, K].
template <class T>
void gate(const T* logits, const float* bias, const Gate& config, int32_t* expert_ids, float* weights, float* scores,
          const ParallelFor& parallel_for);

struct Select {
  int64_t tokens, columns, num_experts, top_k;
  int64_t capacity;        // C, at most the number of real tokens
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

struct Selection {
  int32_t* expert_ids;         // [T, K], num_experts where the column is unused
  float* weights;              // [T, K], 0 where dropped or unused
  int32_t* rows;               // [T, K], -1 where dropped or unused
  int32_t* row_tokens;         // [N], -1 where the row is padding
  int32_t* expert_offsets;     // [E + 1]
  int32_t* tokens_per_expert;  // [E]
  int32_t* demand_per_expert;  // [E]
};

// Capacity and prefix-sum slots. ids, weights, scores [T, K]; token_mask [T] or null; token_priority [T] or null.
template <class Id>
void select(const Id* ids, const float* weights, const float* scores, const bool* token_mask,
            const int64_t* token_priority, const Select& config, const Selection& out, const ParallelFor& parallel_for);

// Copies row row_tokens[n] of hidden_states [T, row_bytes] to row n of x [N, row_bytes]; skips padding.
void dispatch(const void* hidden_states, const int32_t* row_tokens, int64_t rows, int64_t row_bytes, void* x,
              const ParallelFor& parallel_for);

enum class Activation { silu, gelu, gelu_tanh, swigluoai, relu, relu2 };

struct GroupedMlp {
  int64_t num_experts, hidden, intermediate;
  Activation activation;
  bool gated;        // gate_up_proj is [E, 2F, H] and h = act(gate) * up, else [E, F, H] and h = act(up)
  bool interleaved;  // gated: rows of gate_up_proj alternate gate, up; else all gate rows, then all up rows
};

// y[r] = down(act(gate_up(x[r]))) for the rows of each expert: [expert_offsets[e], + tokens_per_expert[e]).
// Sums in float32. x is [N, H], or, where row_tokens is given, [T, H] gathered through it. Biases may be null:
// gate_up_bias [E, 2F] (or [E, F]), down_bias [E, H]. Rows of no expert are neither read nor written.
template <class T>
void grouped_mlp(const T* x, const int32_t* row_tokens, const T* gate_up_proj, const T* gate_up_bias,
                 const T* down_proj, const T* down_bias, const int32_t* expert_offsets,
                 const int32_t* tokens_per_expert, const GroupedMlp& config, T* y, const ParallelFor& parallel_for);

// out[t] = sum over columns, in order and in float32, of weights[t, j] * y[rows[t, j]]; rows -1 are skipped.
template <class T>
void combine(const T* y, const int32_t* rows, const float* weights, int64_t tokens, int64_t columns, int64_t hidden,
             T* out, const ParallelFor& parallel_for);

}  // namespace capmoe::cpu
