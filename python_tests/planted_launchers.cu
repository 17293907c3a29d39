// The launchers of csrc/cuda for ctypes: of one that throws, the call is 1 and message_of_failure() has the text.
#include <exception>
#include <string>

#include "../csrc/cuda/gate_wide.cuh"
#include "../csrc/cuda/kernels.h"

namespace cuda = capmoe::cuda;
using Element = __nv_bfloat16;

namespace {

thread_local std::string message;

template <class Call>
int caught(Call call) {
  try {
    call();
  } catch (const std::exception& error) {
    message = error.what();
    return 1;
  }
  return 0;
}

}  // namespace

extern "C" {

const char* message_of_failure() { return message.c_str(); }

int dispatch(const void* hidden_states, const int32_t* row_tokens, int64_t tokens, int64_t rows, int64_t row_bytes,
             void* x) {
  return caught([&] { cuda::dispatch(hidden_states, row_tokens, tokens, rows, row_bytes, x, nullptr); });
}

int combine(const Element* y, const int32_t* rows, const float* weights, int64_t tokens, int64_t columns,
            int64_t y_rows, int64_t hidden, Element* out) {
  return caught([&] { cuda::combine(y, rows, weights, tokens, columns, y_rows, hidden, out, nullptr); });
}

// asks and top: [E][W] bits.
int mark(const int32_t* ids, const float* scores, int64_t tokens, int64_t columns, int64_t top_k, int64_t num_experts,
         uint32_t* asks, uint32_t* top, uint32_t* counters) {
  capmoe::Select config = {};
  config.tokens = tokens, config.columns = columns, config.top_k = top_k, config.num_experts = num_experts;
  return caught([&] { cuda::mark(ids, scores, config, {asks, top, nullptr, nullptr, counters, true}, nullptr); });
}

// The plain top-k: softmax, nothing renormalised.
int gate_wide(const float* logits, int64_t tokens, int64_t num_experts, int64_t top_k, int32_t* expert_ids,
              float* weights, float* scores) {
  capmoe::Gate config = {};
  config.tokens = tokens, config.num_experts = num_experts, config.columns = config.top_k = top_k;
  config.num_groups = config.topk_groups = 1, config.scaling = 1.0f;
  return caught([&] { cuda::gate_wide(logits, nullptr, config, expert_ids, weights, scores, {}, nullptr); });
}

// silu, gated, rows of gate and of up one after the other.
int grouped_mlp(const Element* x, const Element* gate_up_proj, const Element* down_proj, const int32_t* expert_offsets,
                const int32_t* tokens_per_expert, int64_t rows, int64_t num_experts, int64_t hidden,
                int64_t intermediate, Element* hidden_rows, Element* y) {
  const capmoe::GroupedMlp config = {num_experts, hidden, intermediate, capmoe::Activation::silu, true, false};
  return caught([&] {
    cuda::grouped_mlp<Element>(x, rows, nullptr, gate_up_proj, nullptr, down_proj, nullptr, expert_offsets,
                               tokens_per_expert, rows, rows, config, hidden_rows, y, nullptr);
  });
}

}  // extern "C"
