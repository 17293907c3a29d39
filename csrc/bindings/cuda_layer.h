// The whole layer on the device: which kernels, in what order, on which memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "../cuda/kernels.h"
#include "cuda_stream.h"
#include "workspace.h"

namespace capmoe {

template <class F>
void dispatch_float(const Tensor& tensor, F&& body) {
  const ScalarType dtype = tensor.scalar_type();
  if (dtype == ScalarType::Float) return body(float{});
  if (dtype == ScalarType::BFloat16) return body(__nv_bfloat16{});
  body(__half{});
}

// Dense tensors, and what was asked of them.
struct LayerCall {
  Tensor hidden_states, router_logits, gate_up_proj, down_proj;
  std::optional<Tensor> selection_bias, token_mask, token_priority, gate_up_bias, down_bias;
  Gate gate;
  Select select;
  GroupedMlp mlp;
};

// One launch for a few tokens, else two.
template <class T>
void route_layer(const LayerCall& call, const Layer<T>& layer, cudaStream_t stream) {
  const float* bias = read<float>(call.selection_bias);
  const bool* mask = read<bool>(call.token_mask);
  const int64_t* priority = read<int64_t>(call.token_priority);
  const Candidates& all = layer.candidates;
  dispatch_float(call.router_logits, [&](auto type) {
    const auto* logits = read<decltype(type)>(call.router_logits);
    if (cuda::route_fits(call.gate, call.select)) {
      return cuda::route(logits, bias, call.gate, mask, priority, call.select, layer.selection, stream);
    }
    cuda::gate(logits, bias, call.gate, all.expert_ids, all.weights, all.scores, &layer.select.marks, stream);
    cuda::select(all.expert_ids, all.weights, all.scores, mask, priority, call.select, layer.select.marks,
                 layer.select.scratch, layer.selection, stream);
  });
}

// Route, the experts' two launches and combine.
template <class T>
void run_layer(const LayerCall& call, T* out) {
  const Tensor& x = call.hidden_states;
  const cudaStream_t stream = current_stream(x);
  const bool cards =
      cuda::uses_cards(call.gate, call.select, call.token_mask.has_value(), call.token_priority.has_value());
  const Workspace<Layer<T>> workspace(x, call.gate, call.select, call.mlp, cards);
  const Layer<T>& layer = workspace.pieces;
  const Selection& chosen = layer.selection;
  const int64_t tokens = call.gate.tokens, columns = call.gate.columns, rows = call.select.rows;
  route_layer(call, layer, stream);
  cuda::grouped_mlp(read<T>(x), tokens, chosen.row_tokens, read<T>(call.gate_up_proj), read<T>(call.gate_up_bias),
                    read<T>(call.down_proj), read<T>(call.down_bias), chosen.expert_offsets, chosen.tokens_per_expert,
                    rows, std::min(rows, tokens * columns), call.mlp, layer.hidden_rows, layer.y, stream);
  cuda::combine(layer.y, chosen.rows, chosen.weights, tokens, columns, rows, call.mlp.hidden, out, stream);
}

}  // namespace capmoe
