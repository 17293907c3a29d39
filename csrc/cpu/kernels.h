// The CPU kernels: what each step of the layer computes, on plain pointers.
//
// Sizes in shape comments: T tokens, E experts, K candidate columns, N rows of the packed buffer, H hidden,
// F intermediate. All arrays are dense and row-major. Nothing here knows a tensor, and nothing here starts a
// thread: the caller passes `ParallelFor`, so that torch's thread count is obeyed. No result depends on how
// the range is cut.
#pragma once

#include <cstdint>
#include <functional>

#include "../options.h"

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

// Scores, top-k and the candidates that Expanded Drop adds. logits [T, E]; bias [E] or null.
// Writes expert_ids, weights, scores [T, K].
template <class T>
void gate(const T* logits, const float* bias, const Gate& config, int32_t* expert_ids, float* weights, float* scores,
          const ParallelFor& parallel_for);

// Capacity and prefix-sum slots. ids, weights, scores [T, K]; token_mask [T] or null; token_priority [T] or null.
// capacity is C, at most the number of real tokens.
template <class Id>
void select(const Id* ids, const float* weights, const float* scores, const bool* token_mask,
            const int64_t* token_priority, const Select& config, int64_t capacity, const Selection& out,
            const ParallelFor& parallel_for);

// Copies row row_tokens[n] of hidden_states [T, row_bytes] to row n of x [N, row_bytes]; skips padding.
void dispatch(const void* hidden_states, const int32_t* row_tokens, int64_t rows, int64_t row_bytes, void* x,
              const ParallelFor& parallel_for);

// weights [experts, rows, columns] into packed.h's layout, which fits the dtype and not the processor.
template <class T>
void pack(const T* weights, int64_t experts, int64_t rows, int64_t columns, bool gated, bool interleaved, T* out,
          const ParallelFor& parallel_for);

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
