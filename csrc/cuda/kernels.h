// The CUDA kernels: what each step of the layer computes, on plain device pointers.
//
// Sizes in shape comments: T tokens, E experts, K candidate columns, N rows of the packed buffer, H hidden,
// F intermediate; W = ceil(T / 32). All arrays are dense and row-major. Every function only launches on `stream`: it
// never allocates, never synchronises, and reads nothing back; a launch that fails throws std::runtime_error. Results
// do not depend on the order in which blocks run. T = 0 and N = 0 launch nothing that is not needed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "../options.h"

namespace capmoe::cuda {

constexpr int kSelectCounters = 4;

// A card: an expert's asks among 32 tokens, as in Marks::asks, then the keys of those who ask, the lowest token's
// first. In whole sectors of memory, of which seven keys need one.
constexpr int kCardWords = 40;

// Who asks for whom, by expert: what capacity is decided on. Scratch between two kernels of one call.
struct Marks {
  uint32_t* asks;      // [E][W]: bit t % 32 of word t / 32 is set where token t has expert e among its columns
  uint32_t* top;       // [E][W]: the same for the first top_k columns only; null where K == top_k
  uint32_t* keys;      // [E][T]: order_key(score) where asks is set, else unspecified; null where scores decide nothing
  uint32_t* cards;     // [E][W] of kCardWords: instead of asks and keys, where uses_cards(); else null
  uint32_t* counters;  // [kSelectCounters]: zeroed by whoever writes the marks (select's barrier and sums)
  bool repeats;        // the ids are a caller's own: a token may list an expert twice
};

// Whether gate and select pass on asks and keys on cards: where scores decide, once, and few columns are asked for.
bool uses_cards(const Gate& gate, const Select& select, bool masked, bool prioritised);

// Scores, top-k and the candidates that Expanded Drop adds. logits [T, E]; bias [E] or null.
// Writes expert_ids, weights and, unless they are null, scores, all [T, K], and *marks.
template <class T>
void gate(const T* logits, const float* bias, const Gate& config, int32_t* expert_ids, float* weights, float* scores,
          const Marks* marks, cudaStream_t stream);

// Marks of a caller's own top-k. ids, scores [T, K]: an id outside [0, E), and the later of two equal ones, is unused.
template <class Id>
void mark(const Id* ids, const float* scores, const Select& config, const Marks& marks, cudaStream_t stream);

// Whether select looks at scores, too, and not only at the marks.
inline bool reads_scores(const Select& config) { return config.max_per_token < config.columns; }

// Bytes of scratch that select needs beside the marks.
size_t select_scratch(const Select& config);

// Capacity and prefix-sum slots. ids, weights, scores [T, K], the last where reads_scores() or null; token_mask [T] or
// null; token_priority [T] or null. Changes the marks. C is computed on the device where there is a mask.
template <class Id>
void select(const Id* ids, const float* weights, const float* scores, const bool* token_mask,
            const int64_t* token_priority, const Select& config, const Marks& marks, void* scratch,
            const Selection& out, cudaStream_t stream);

// gate and select in one launch of one block, for few tokens: where route_fits(). Needs no marks.
bool route_fits(const Gate& gate, const Select& select);
template <class T>
void route(const T* logits, const float* bias, const Gate& gate, const bool* token_mask, const int64_t* token_priority,
           const Select& select, const Selection& out, cudaStream_t stream);

// Copies row row_tokens[n] of hidden_states [T, row_bytes] to row n of x [N, row_bytes]; skips what is outside [0, T).
// row_bytes is even, as are both addresses.
void dispatch(const void* hidden_states, const int32_t* row_tokens, int64_t tokens, int64_t rows, int64_t row_bytes,
              void* x, cudaStream_t stream);

// The experts on their rows: two launches, up and down. x is [x_rows, H]: the N rows, or, where row_tokens is given,
// T tokens gathered through it. Biases may be null: gate_up_bias [E, 2F] (or [E, F]), down_bias [E, H]. hidden_rows
// [N, F] is scratch. `expected_rows` (the host's guess of how many rows there are, at most N) chooses the tiles and
// never the result. Sums in float32; h is rounded once to T. Rows of no expert are neither read nor written. Whatever
// the integers on the device are, no other memory is touched: an expert has no rows beyond N, and none where its offset
// or count is negative; a row whose token is outside [0, T) is made of another token, and what is in a row of two
// experts is unspecified.
template <class T>
void grouped_mlp(const T* x, int64_t x_rows, const int32_t* row_tokens, const T* gate_up_proj, const T* gate_up_bias,
                 const T* down_proj, const T* down_bias, const int32_t* expert_offsets,
                 const int32_t* tokens_per_expert, int64_t rows, int64_t expected_rows, const GroupedMlp& config,
                 T* hidden_rows, T* y, cudaStream_t stream);

// out[t] = sum over columns, in order and in float32, of weights[t, j] * y[rows[t, j]], y being [N, H]; what is outside
// [0, N), such as -1, is skipped.
template <class T>
void combine(const T* y, const int32_t* rows, const float* weights, int64_t tokens, int64_t columns, int64_t y_rows,
             int64_t hidden, T* out, cudaStream_t stream);

}  // namespace capmoe::cuda
