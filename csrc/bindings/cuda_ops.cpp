// The CUDA backend's border: tensors in, checked; kernels launched on torch's stream; tensors out.
//
// Values live on the device, so they are not looked at here. The kernels skip expert ids and row numbers that are out
// of range, and leave out what offsets and counts say of rows that a buffer does not have.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../cuda/kernels.h"
#include "checks.h"
#include "configs.h"
#include "cuda_layer.h"
#include "cuda_stream.h"
#include "tensor.h"
#include "workspace.h"

// A test build registers the same code for CPU tensors under another name, and runs it in an emulator.
#ifndef CAPMOE_LIBRARY
#define CAPMOE_LIBRARY capmoe
#endif
#ifndef CAPMOE_KEY
#define CAPMOE_KEY CUDA
#endif

namespace capmoe {
namespace {

std::tuple<Tensor, Tensor, Tensor> gate(const Tensor& router_logits, const MaybeTensor& selection_bias, int64_t top_k,
                                        Strings scoring, Strings renormalize, double scaling, int64_t num_groups,
                                        int64_t topk_groups, Strings group_score, Strings drop_score, Strings expand,
                                        int64_t extra, int64_t local_start, int64_t local_stop) {
  check_device(router_logits, {{"selection_bias", selection_bias}});
  const Gate config = gate_config(router_logits, selection_bias, top_k, scoring, renormalize, scaling, num_groups,
                                  topk_groups, group_score, drop_score, expand, extra, local_start, local_stop);
  const DeviceGuard guard(router_logits);
  const Tensor logits = dense(router_logits);
  const MaybeTensor bias = dense(selection_bias);
  Tensor expert_ids = new_tensor(logits, {config.tokens, config.columns}, ScalarType::Int);
  Tensor weights = new_tensor(logits, {config.tokens, config.columns}, ScalarType::Float);
  Tensor scores = new_tensor(logits, {config.tokens, config.columns}, ScalarType::Float);
  dispatch_float(logits, [&](auto type) {
    cuda::gate(read<decltype(type)>(logits), read<float>(bias), config, write<int32_t>(expert_ids),
               write<float>(weights), write<float>(scores), nullptr, current_stream(logits));
  });
  return {expert_ids, weights, scores};
}

SelectedTuple select(const Tensor& topk_ids, const Tensor& weights, const Tensor& scores, const MaybeTensor& token_mask,
                     const MaybeTensor& token_priority, int64_t num_experts, int64_t top_k, const MaybeInts& factor,
                     const MaybeInt& limit, Strings rounding, Strings policy, Strings expand_priority,
                     const MaybeInt& max_experts_per_token, int64_t reroute_rounds, int64_t experts_per_budget,
                     int64_t seed, const MaybeFloat& kept_weight_sum, Strings layout, int64_t row_alignment,
                     int64_t num_rows) {
  check_device(
      topk_ids,
      {{"weights", weights}, {"scores", scores}, {"token_mask", token_mask}, {"token_priority", token_priority}});
  check_select(topk_ids, weights, scores, token_mask, token_priority);
  const Select config = select_config(topk_ids.size(0), topk_ids.size(1), num_experts, top_k, factor, limit, rounding,
                                      policy, expand_priority, max_experts_per_token, reroute_rounds,
                                      experts_per_budget, seed, kept_weight_sum, layout, row_alignment, num_rows);
  const DeviceGuard guard(topk_ids);
  const MaybeTensor mask = dense(token_mask), priority = dense(token_priority);
  const Tensor ids = dense(topk_ids), dense_weights = dense(weights), dense_scores = dense(scores);
  const Selected out(ids, config);
  const Workspace<SelectScratch> workspace(ids, config, true, false);
  const auto run = [&](auto id) {
    using Id = decltype(id);
    const auto& [marks, scratch] = workspace.pieces;
    const cudaStream_t stream = current_stream(ids);
    cuda::mark(read<Id>(ids), read<float>(dense_scores), config, marks, stream);
    cuda::select(read<Id>(ids), read<float>(dense_weights), read<float>(dense_scores), read<bool>(mask),
                 read<int64_t>(priority), config, marks, scratch, out.pointers(), stream);
  };
  ids.scalar_type() == ScalarType::Int ? run(int32_t{}) : run(int64_t{});
  return as_tuple(out);
}

Tensor dispatch(const Tensor& hidden_states, const Tensor& row_tokens) {
  check_device(hidden_states, {{"row_tokens", row_tokens}});
  check_dispatch(hidden_states, row_tokens);
  const DeviceGuard guard(hidden_states);
  const Tensor from = dense(hidden_states), tokens = dense(row_tokens);
  Tensor x = new_tensor(from, {tokens.size(0), from.size(1)}, from.scalar_type());
  const int64_t row_bytes = from.size(1) * static_cast<int64_t>(from.element_size());
  cuda::dispatch(from.const_data_ptr(), read<int32_t>(tokens), from.size(0), tokens.size(0), row_bytes,
                 x.mutable_data_ptr(), current_stream(from));
  return x;
}

Tensor grouped_mlp(const Tensor& x, const Tensor& gate_up_proj, const Tensor& down_proj,
                   const MaybeTensor& gate_up_bias, const MaybeTensor& down_bias, const Tensor& expert_offsets,
                   const Tensor& tokens_per_expert, const MaybeTensor& row_tokens, Strings activation, Strings layout) {
  check_device(x, {{"gate_up_proj", gate_up_proj},
                   {"down_proj", down_proj},
                   {"gate_up_bias", gate_up_bias},
                   {"down_bias", down_bias},
                   {"expert_offsets", expert_offsets},
                   {"tokens_per_expert", tokens_per_expert},
                   {"row_tokens", row_tokens}});
  check_experts(gate_up_proj, down_proj, gate_up_bias, down_bias, is_gated(activation));
  check_grouped_mlp(x, down_proj.size(1), down_proj, expert_offsets, tokens_per_expert, row_tokens);
  const GroupedMlp config = mlp_config(down_proj, activation, layout);
  const DeviceGuard guard(x);
  const Tensor in = dense(x), up = dense(gate_up_proj), down = dense(down_proj);
  const Tensor offsets = dense(expert_offsets), counts = dense(tokens_per_expert);
  const MaybeTensor up_bias = dense(gate_up_bias), out_bias = dense(down_bias), tokens = dense(row_tokens);
  const int64_t rows = tokens ? tokens->size(0) : in.size(0);
  Tensor hidden_rows = new_tensor(in, {rows, config.intermediate}, in.scalar_type());
  Tensor y = new_tensor(in, {rows, config.hidden}, in.scalar_type());
  dispatch_float(in, [&](auto type) {
    using T = decltype(type);
    cuda::grouped_mlp(read<T>(in), in.size(0), read<int32_t>(tokens), read<T>(up), read<T>(up_bias), read<T>(down),
                      read<T>(out_bias), read<int32_t>(offsets), read<int32_t>(counts), rows, rows, config,
                      write<T>(hidden_rows), write<T>(y), current_stream(in));
  });
  return y;
}

Tensor combine(const Tensor& y, const Tensor& rows, const Tensor& weights) {
  check_device(y, {{"rows", rows}, {"weights", weights}});
  check_combine(y, rows, weights);
  const DeviceGuard guard(y);
  const Tensor from = dense(y), dense_rows = dense(rows), dense_weights = dense(weights);
  Tensor out = new_tensor(from, {rows.size(0), from.size(1)}, from.scalar_type());
  dispatch_float(from, [&](auto type) {
    using T = decltype(type);
    cuda::combine(read<T>(from), read<int32_t>(dense_rows), read<float>(dense_weights), rows.size(0), rows.size(1),
                  from.size(0), from.size(1), write<T>(out), current_stream(from));
  });
  return out;
}

// The layer in one call and five launches, four where one block routes all tokens; everything between them is in one
// allocation.
Tensor moe(const Tensor& hidden_states, const Tensor& router_logits, const MaybeTensor& selection_bias, int64_t top_k,
           Strings scoring, Strings renormalize, double scaling, int64_t num_groups, int64_t topk_groups,
           Strings group_score, Strings drop_score, Strings expand, int64_t extra, int64_t local_start,
           int64_t local_stop, const MaybeTensor& token_mask, const MaybeTensor& token_priority,
           const MaybeInts& factor, const MaybeInt& limit, Strings rounding, Strings policy, Strings expand_priority,
           const MaybeInt& max_experts_per_token, int64_t reroute_rounds, int64_t experts_per_budget, int64_t seed,
           int64_t num_rows, const Tensor& gate_up_proj, const Tensor& down_proj, const MaybeTensor& gate_up_bias,
           const MaybeTensor& down_bias, Strings activation, Strings layout) {
  check_device(hidden_states, {{"router_logits", router_logits},
                               {"selection_bias", selection_bias},
                               {"token_mask", token_mask},
                               {"token_priority", token_priority},
                               {"gate_up_proj", gate_up_proj},
                               {"down_proj", down_proj},
                               {"gate_up_bias", gate_up_bias},
                               {"down_bias", down_bias}});
  check_experts(gate_up_proj, down_proj, gate_up_bias, down_bias, is_gated(activation));
  const Gate gate = gate_config(router_logits, selection_bias, top_k, scoring, renormalize, scaling, num_groups,
                                topk_groups, group_score, drop_score, expand, extra, local_start, local_stop);
  check_moe(hidden_states, down_proj.size(1), router_logits, down_proj, token_mask, token_priority);
  const Select select =
      select_config(gate.tokens, gate.columns, gate.num_experts, top_k, factor, limit, rounding, policy,
                    expand_priority, max_experts_per_token, reroute_rounds, experts_per_budget, seed,
                    kept_weight_sum_of(renormalize, scaling), "packed", 1, num_rows);
  const GroupedMlp mlp = mlp_config(down_proj, activation, layout);
  const DeviceGuard guard(hidden_states);
  const LayerCall call{dense(hidden_states),
                       dense(router_logits),
                       dense(gate_up_proj),
                       dense(down_proj),
                       dense(selection_bias),
                       dense(token_mask),
                       dense(token_priority),
                       dense(gate_up_bias),
                       dense(down_bias),
                       gate,
                       select,
                       mlp};
  const Tensor& x = call.hidden_states;
  Tensor out = new_tensor(x, {gate.tokens, mlp.hidden}, x.scalar_type());
  if (gate.tokens == 0) return out;
  dispatch_float(x, [&](auto type) { run_layer(call, write<decltype(type)>(out)); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(CAPMOE_LIBRARY, CAPMOE_KEY, m) {
  m.impl("gate", TORCH_BOX(&gate));
  m.impl("select", TORCH_BOX(&select));
  m.impl("dispatch", TORCH_BOX(&dispatch));
  m.impl("grouped_mlp", TORCH_BOX(&grouped_mlp));
  m.impl("combine", TORCH_BOX(&combine));
  m.impl("moe", TORCH_BOX(&moe));
}

}  // namespace capmoe
