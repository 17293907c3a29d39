// The CPU backend's border: tensors in, checked; kernels called on pointers; tensors out.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../cpu/grouped_mlp.h"
#include "../cpu/kernels.h"
#include "checks.h"
#include "configs.h"
#include "packed_config.h"
#include "tensor.h"

namespace capmoe {
namespace {

// torch's threads, at least `grain` items of work each.
cpu::ParallelFor threads(int64_t grain) {
  return [grain](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    if (count > 0) torch::stable::parallel_for(0, count, grain, body);
  };
}

template <class F>
void dispatch_float(const Tensor& tensor, F&& body) {
  const ScalarType dtype = tensor.scalar_type();
  if (dtype == ScalarType::Float) return body(float{});
  if (dtype == ScalarType::BFloat16) return body(cpu::BFloat16{});
  body(cpu::Half{});
}

// Every value in [-1, end): what a routing that this package made always satisfies.
void check_indices(const Tensor& indices, const char* name, int64_t end) {
  const int32_t* values = read<int32_t>(indices);
  for (int64_t i = 0; i < indices.numel(); ++i) {
    STD_TORCH_CHECK(values[i] >= -1 && values[i] < end, name, " must be from -1 to ", end - 1, ", got ", values[i]);
  }
}

std::tuple<Tensor, Tensor, Tensor> gate(const Tensor& router_logits, const MaybeTensor& selection_bias, int64_t top_k,
                                        Strings scoring, Strings renormalize, double scaling, int64_t num_groups,
                                        int64_t topk_groups, Strings group_score, Strings drop_score, Strings expand,
                                        int64_t extra, int64_t local_start, int64_t local_stop) {
  const Gate config = gate_config(router_logits, selection_bias, top_k, scoring, renormalize, scaling, num_groups,
                                  topk_groups, group_score, drop_score, expand, extra, local_start, local_stop);
  const Tensor logits = dense(router_logits);
  const MaybeTensor bias = dense(selection_bias);
  Tensor expert_ids = new_tensor(logits, {config.tokens, config.columns}, ScalarType::Int);
  Tensor weights = new_tensor(logits, {config.tokens, config.columns}, ScalarType::Float);
  Tensor scores = new_tensor(logits, {config.tokens, config.columns}, ScalarType::Float);
  dispatch_float(logits, [&](auto type) {
    cpu::gate(read<decltype(type)>(logits), read<float>(bias), config, write<int32_t>(expert_ids),
              write<float>(weights), write<float>(scores), threads(64));
  });
  return {expert_ids, weights, scores};
}

int64_t real_tokens(const Tensor& topk_ids, const MaybeTensor& token_mask) {
  if (!token_mask) return topk_ids.size(0);
  const bool* mask = read<bool>(*token_mask);
  return std::count(mask, mask + token_mask->numel(), true);
}

SelectedTuple select(const Tensor& topk_ids, const Tensor& weights, const Tensor& scores, const MaybeTensor& token_mask,
                     const MaybeTensor& token_priority, int64_t num_experts, int64_t top_k, const MaybeInts& factor,
                     const MaybeInt& limit, Strings rounding, Strings policy, Strings expand_priority,
                     const MaybeInt& max_experts_per_token, int64_t reroute_rounds, int64_t experts_per_budget,
                     int64_t seed, const MaybeFloat& kept_weight_sum, Strings layout, int64_t row_alignment,
                     int64_t num_rows) {
  check_select(topk_ids, weights, scores, token_mask, token_priority);
  const Select config = select_config(topk_ids.size(0), topk_ids.size(1), num_experts, top_k, factor, limit, rounding,
                                      policy, expand_priority, max_experts_per_token, reroute_rounds,
                                      experts_per_budget, seed, kept_weight_sum, layout, row_alignment, num_rows);
  const MaybeTensor mask = dense(token_mask), priority = dense(token_priority);
  const Tensor ids = dense(topk_ids), dense_weights = dense(weights), dense_scores = dense(scores);
  const Selected out(ids, config);
  const auto run = [&](auto id) {
    using Id = decltype(id);
    cpu::select(read<Id>(ids), read<float>(dense_weights), read<float>(dense_scores), read<bool>(mask),
                read<int64_t>(priority), config, capacity_of(config, real_tokens(ids, mask)), out.pointers(),
                threads(1));
  };
  ids.scalar_type() == ScalarType::Int ? run(int32_t{}) : run(int64_t{});
  return as_tuple(out);
}

Tensor dispatch(const Tensor& hidden_states, const Tensor& row_tokens) {
  check_dispatch(hidden_states, row_tokens);
  const Tensor from = dense(hidden_states), tokens = dense(row_tokens);
  check_indices(tokens, "row_tokens", from.size(0));
  Tensor x = new_tensor(from, {tokens.size(0), from.size(1)}, from.scalar_type());
  const int64_t row_bytes = from.size(1) * static_cast<int64_t>(from.element_size());
  cpu::dispatch(from.const_data_ptr(), read<int32_t>(tokens), tokens.size(0), row_bytes, x.mutable_data_ptr(),
                threads(64));
  return x;
}

// Experts' rows inside the buffer, and no row of two experts.
void check_offsets(const Tensor& expert_offsets, const Tensor& tokens_per_expert, int64_t rows) {
  const int32_t *offsets = read<int32_t>(expert_offsets), *counts = read<int32_t>(tokens_per_expert);
  const int64_t experts = tokens_per_expert.size(0);
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t end = std::min<int64_t>(offsets[e + 1], rows);
    STD_TORCH_CHECK(counts[e] >= 0 && offsets[e] >= 0 && int64_t{offsets[e]} + counts[e] <= end,
                    "expert_offsets and tokens_per_expert must give expert ", e, " rows from 0 to ", end, ", got ",
                    counts[e], " from ", offsets[e]);
  }
}

// Weights [E, N, K] as packed.h has them: [E, blocks, K with its zeros, 16].
Tensor pack(const Tensor& weights, bool gated, Strings layout) {
  check_shape(weights, "weights", {-1, -1, -1});
  check_float(weights, "weights");
  const bool interleaved = parse<bool>("layout", layout, {{"concat", false}, {"interleaved", true}});
  STD_TORCH_CHECK(gated || !interleaved, "layout must be concat for weights that are not gated, got ", layout);
  const int64_t experts = weights.size(0), rows = weights.size(1), columns = weights.size(2);
  STD_TORCH_CHECK(rows >= 1 && columns >= 1, "weights must have rows and columns, got ", rows, " and ", columns);
  STD_TORCH_CHECK(!gated || rows % 2 == 0, "weights must have an even number of rows where gated, got ", rows);
  const Tensor from = dense(weights);
  const int64_t blocks = cpu::ceil_div(gated ? rows / 2 : rows, cpu::kBlock) * (gated ? 2 : 1);
  const int64_t padded = packed_columns(columns, from.scalar_type());
  Tensor out = new_tensor(from, {experts, blocks, padded, cpu::kBlock}, from.scalar_type());
  cpu::wish_for_huge_pages(out.mutable_data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
  dispatch_float(from, [&](auto type) {
    using T = decltype(type);
    cpu::pack(read<T>(from), experts, rows, columns, gated, interleaved, write<T>(out), threads(1));
  });
  return out;
}

// A token for every row of an expert; only padding may have none.
void check_row_tokens(const Tensor& row_tokens, const Tensor& expert_offsets, const Tensor& tokens_per_expert) {
  const int32_t *tokens = read<int32_t>(row_tokens), *offsets = read<int32_t>(expert_offsets);
  const int32_t* counts = read<int32_t>(tokens_per_expert);
  for (int64_t e = 0; e < tokens_per_expert.size(0); ++e) {
    for (int64_t row = offsets[e]; row < int64_t{offsets[e]} + counts[e]; ++row) {
      STD_TORCH_CHECK(tokens[row] >= 0, "row_tokens must give expert ", e, " a token for row ", row, ", got ",
                      tokens[row]);
    }
  }
}

Tensor grouped_mlp(const Tensor& x, const Tensor& gate_up_proj, const Tensor& down_proj,
                   const MaybeTensor& gate_up_bias, const MaybeTensor& down_bias, const Tensor& expert_offsets,
                   const Tensor& tokens_per_expert, const MaybeTensor& row_tokens, Strings activation, Strings layout) {
  const GroupedMlp config =
      experts_config(x, "x", gate_up_proj, down_proj, gate_up_bias, down_bias, activation, layout);
  check_grouped_mlp(x, config.hidden, down_proj, expert_offsets, tokens_per_expert, row_tokens);
  const Tensor in = dense(x), up = dense(gate_up_proj), down = dense(down_proj);
  const Tensor offsets = dense(expert_offsets), counts = dense(tokens_per_expert);
  const MaybeTensor up_bias = dense(gate_up_bias), out_bias = dense(down_bias), tokens = dense(row_tokens);
  const int64_t rows = tokens ? tokens->size(0) : in.size(0);
  if (tokens) check_indices(*tokens, "row_tokens", in.size(0));
  check_offsets(offsets, counts, rows);
  if (tokens) check_row_tokens(*tokens, offsets, counts);
  Tensor y = new_tensor(in, {rows, config.hidden}, in.scalar_type());
  dispatch_float(in, [&](auto type) {
    using T = decltype(type);
    cpu::grouped_mlp(read<T>(in), read<int32_t>(tokens), read<T>(up), read<T>(up_bias), read<T>(down),
                     read<T>(out_bias), read<int32_t>(offsets), read<int32_t>(counts), config, write<T>(y), threads(1));
  });
  return y;
}

Tensor combine(const Tensor& y, const Tensor& rows, const Tensor& weights) {
  check_combine(y, rows, weights);
  const Tensor from = dense(y), dense_rows = dense(rows), dense_weights = dense(weights);
  check_indices(dense_rows, "rows", from.size(0));
  Tensor out = new_tensor(from, {rows.size(0), from.size(1)}, from.scalar_type());
  dispatch_float(from, [&](auto type) {
    using T = decltype(type);
    cpu::combine(read<T>(from), read<int32_t>(dense_rows), read<float>(dense_weights), rows.size(0), rows.size(1),
                 from.size(1), write<T>(out), threads(16));
  });
  return out;
}

// A layer's routing, in memory that the thread keeps for its next call.
class Routed {
 public:
  Routed(const Gate& gate, const Select& select) : gate_(gate), select_(select) {
    layout();
    memory_.emplace(bytes_);
    layout();
  }

  template <class T>
  void run(const T* logits, const float* bias, const bool* mask, const int64_t* priority, int64_t real_tokens) const {
    cpu::gate(logits, bias, gate_, ids_, weights_, scores_, threads(64));
    cpu::select(ids_, weights_, scores_, mask, priority, select_, capacity_of(select_, real_tokens), selection_,
                threads(1));
  }

  const Selection& selection() const { return selection_; }

 private:
  // Measures the memory, or, where it's there, cuts it.
  void layout() {
    const int64_t pairs = gate_.tokens * gate_.columns;
    bytes_ = 0;
    take(ids_, pairs);
    take(weights_, pairs);
    take(scores_, pairs);
    take(selection_.expert_ids, pairs);
    take(selection_.weights, pairs);
    take(selection_.rows, pairs);
    take(selection_.row_tokens, select_.rows);
    take(selection_.expert_offsets, select_.num_experts + 1);
    take(selection_.tokens_per_expert, select_.num_experts);
    take(selection_.demand_per_expert, select_.num_experts);
  }

  template <class P>
  void take(P*& piece, int64_t count) {
    if (memory_) piece = reinterpret_cast<P*>(memory_->as<char>() + bytes_);
    bytes_ += cpu::round_up(count * static_cast<int64_t>(sizeof(P)), 64);
  }

  const Gate& gate_;
  const Select& select_;
  std::optional<cpu::Buffer> memory_;
  int64_t bytes_ = 0;
  int32_t* ids_ = nullptr;
  float *weights_ = nullptr, *scores_ = nullptr;
  Selection selection_{};
};

// The ops one after the other, without tensors between them.
Tensor moe(const Tensor& hidden_states, const Tensor& router_logits, const MaybeTensor& selection_bias, int64_t top_k,
           Strings scoring, Strings renormalize, double scaling, int64_t num_groups, int64_t topk_groups,
           Strings group_score, Strings drop_score, Strings expand, int64_t extra, int64_t local_start,
           int64_t local_stop, const MaybeTensor& token_mask, const MaybeTensor& token_priority,
           const MaybeInts& factor, const MaybeInt& limit, Strings rounding, Strings policy, Strings expand_priority,
           const MaybeInt& max_experts_per_token, int64_t reroute_rounds, int64_t experts_per_budget, int64_t seed,
           int64_t num_rows, const Tensor& gate_up_proj, const Tensor& down_proj, const MaybeTensor& gate_up_bias,
           const MaybeTensor& down_bias, Strings activation, Strings layout) {
  const GroupedMlp mlp = experts_config(hidden_states, "hidden_states", gate_up_proj, down_proj, gate_up_bias,
                                        down_bias, activation, layout);
  check_shape(router_logits, "router_logits", {-1, -1});
  check_moe(hidden_states, mlp.hidden, router_logits, down_proj, token_mask, token_priority);
  const Gate gating = gate_config(router_logits, selection_bias, top_k, scoring, renormalize, scaling, num_groups,
                                  topk_groups, group_score, drop_score, expand, extra, local_start, local_stop);
  const Select config =
      select_config(gating.tokens, gating.columns, gating.num_experts, top_k, factor, limit, rounding, policy,
                    expand_priority, max_experts_per_token, reroute_rounds, experts_per_budget, seed,
                    kept_weight_sum_of(renormalize, scaling), "packed", 1, num_rows);
  const Tensor logits = dense(router_logits);
  const MaybeTensor bias = dense(selection_bias), mask = dense(token_mask), priority = dense(token_priority);
  const Routed routed(gating, config);
  dispatch_float(logits, [&](auto type) {
    routed.run(read<decltype(type)>(logits), read<float>(bias), read<bool>(mask), read<int64_t>(priority),
               real_tokens(logits, mask));
  });
  const Selection& chosen = routed.selection();
  const Tensor x = dense(hidden_states), up = dense(gate_up_proj), down = dense(down_proj);
  const MaybeTensor up_bias = dense(gate_up_bias), out_bias = dense(down_bias);
  Tensor out = new_tensor(x, {gating.tokens, mlp.hidden}, x.scalar_type());
  dispatch_float(x, [&](auto type) {
    using T = decltype(type);
    const cpu::Buffer memory(config.rows * mlp.hidden * static_cast<int64_t>(sizeof(T)));
    T* y = memory.as<T>();
    cpu::grouped_mlp(read<T>(x), chosen.row_tokens, read<T>(up), read<T>(up_bias), read<T>(down), read<T>(out_bias),
                     chosen.expert_offsets, chosen.tokens_per_expert, mlp, y, threads(1));
    cpu::combine(y, chosen.rows, chosen.weights, gating.tokens, gating.columns, mlp.hidden, write<T>(out), threads(16));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(capmoe, CPU, m) {
  m.impl("gate", TORCH_BOX(&gate));
  m.impl("select", TORCH_BOX(&select));
  m.impl("dispatch", TORCH_BOX(&dispatch));
  m.impl("grouped_mlp", TORCH_BOX(&grouped_mlp));
  m.impl("pack", TORCH_BOX(&pack));
  m.impl("combine", TORCH_BOX(&combine));
  m.impl("moe", TORCH_BOX(&moe));
}

}  // namespace capmoe
