// The CPU backend's border: tensors in, checked; kernels called on pointers; tensors out.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "../cpu/kernels.h"
#include "checks.h"
#include "tensor.h"

namespace capmoe {
namespace {

using Strings = const std::string&;
using MaybeTensor = std::optional<Tensor>;
using MaybeInt = std::optional<int64_t>;
using MaybeInts = std::optional<std::vector<int64_t>>;
using Selected = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

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
  check_gate(router_logits, selection_bias, top_k, num_groups);
  Gate config{};
  config.tokens = router_logits.size(0);
  config.num_experts = router_logits.size(1);
  config.top_k = top_k;
  config.num_groups = num_groups;
  config.topk_groups = topk_groups;
  config.local_start = local_start;
  config.local_stop = local_stop;
  config.expand =
      parse<Expand>("expand", expand, {{"none", Expand::none}, {"local", Expand::local}, {"rank", Expand::rank}});
  // Rerouting asks for more columns without a name for it: they are ranked, too.
  if (config.expand == Expand::none && extra > 0) config.expand = Expand::rank;
  config.renormalize =
      parse<Renormalize>("renormalize", renormalize,
                         {{"none", Renormalize::none}, {"topk", Renormalize::topk}, {"kept", Renormalize::kept}});
  config.sigmoid = parse<bool>("scoring", scoring, {{"softmax", false}, {"sigmoid", true}});
  config.top2_sum = parse<bool>("group_score", group_score, {{"max", false}, {"top2_sum", true}});
  config.drop_by_weight = parse<bool>("drop_score", drop_score, {{"prob", false}, {"weight", true}});
  config.scaling = static_cast<float>(scaling);
  STD_TORCH_CHECK(0 <= local_start && local_start <= local_stop && local_stop <= config.num_experts && extra >= 0 &&
                      extra <= config.num_experts,
                  "local_start, local_stop and extra must be from 0 to ", config.num_experts);
  const int64_t more = config.expand == Expand::local ? local_stop - local_start : extra;
  config.columns = std::min(config.num_experts, top_k + more);
  STD_TORCH_CHECK(1 <= topk_groups && topk_groups <= num_groups, "topk_groups must be from 1 to ", num_groups, ", got ",
                  topk_groups);

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

Bound parse_bound(const MaybeInts& factor, const MaybeInt& limit, Strings rounding) {
  Bound bound{};
  if (factor) bound.numerator = (*factor)[0], bound.denominator = (*factor)[1];
  bound.limit = limit.value_or(-1);
  bound.ceil = parse<bool>("rounding", rounding, {{"ceil", true}, {"floor", false}});
  return bound;
}

Policy parse_policy(Strings policy) {
  return parse<Policy>("policy", policy,
                       {{"score", Policy::score},
                        {"keep_first", Policy::keep_first},
                        {"keep_last", Policy::keep_last},
                        {"random", Policy::random}});
}

Selected select(const Tensor& topk_ids, const Tensor& weights, const Tensor& scores, const MaybeTensor& token_mask,
                const MaybeTensor& token_priority, int64_t num_experts, int64_t top_k, const MaybeInts& factor,
                const MaybeInt& limit, Strings rounding, Strings policy, Strings expand_priority,
                const MaybeInt& max_experts_per_token, int64_t reroute_rounds, int64_t experts_per_budget, int64_t seed,
                const std::optional<double>& kept_weight_sum, Strings layout, int64_t row_alignment, int64_t num_rows) {
  check_select(topk_ids, weights, scores, token_mask, token_priority);
  check_bound(num_experts, top_k, factor, limit, max_experts_per_token, reroute_rounds, experts_per_budget);
  const bool padded = parse<bool>("layout", layout, {{"packed", false}, {"padded", true}});
  check_rows(num_experts, experts_per_budget, padded, row_alignment, num_rows);
  const MaybeTensor mask = dense(token_mask), priority = dense(token_priority);
  const Tensor ids = dense(topk_ids), dense_weights = dense(weights), dense_scores = dense(scores);
  Select config{};
  config.tokens = ids.size(0);
  config.columns = ids.size(1);
  config.num_experts = num_experts;
  config.top_k = top_k;
  config.bound = parse_bound(factor, limit, rounding);
  config.unit = experts_per_budget;
  config.max_per_token = max_experts_per_token.value_or(config.columns);
  config.reroute_rounds = reroute_rounds;
  config.row_alignment = row_alignment;
  config.padded_rows = padded ? num_rows / num_experts : -1;
  config.rows = num_rows;
  config.policy = parse_policy(policy);
  config.topk_first = parse<bool>("expand_priority", expand_priority, {{"score", false}, {"topk_first", true}});
  config.seed = static_cast<uint64_t>(seed);
  config.kept_weight_sum = kept_weight_sum ? static_cast<float>(*kept_weight_sum) : -1.0f;

  Tensor expert_ids = new_tensor(ids, {config.tokens, config.columns}, ScalarType::Int);
  Tensor out_weights = new_tensor(ids, {config.tokens, config.columns}, ScalarType::Float);
  Tensor rows = new_tensor(ids, {config.tokens, config.columns}, ScalarType::Int);
  Tensor row_tokens = new_tensor(ids, {config.rows}, ScalarType::Int);
  Tensor offsets = new_tensor(ids, {num_experts + 1}, ScalarType::Int);
  Tensor counts = new_tensor(ids, {num_experts}, ScalarType::Int);
  Tensor demand = new_tensor(ids, {num_experts}, ScalarType::Int);
  const Selection out{write<int32_t>(expert_ids), write<float>(out_weights), write<int32_t>(rows),
                      write<int32_t>(row_tokens), write<int32_t>(offsets),   write<int32_t>(counts),
                      write<int32_t>(demand)};
  const auto run = [&](auto id) {
    using Id = decltype(id);
    cpu::select(read<Id>(ids), read<float>(dense_weights), read<float>(dense_scores), read<bool>(mask),
                read<int64_t>(priority), config, capacity_of(config, real_tokens(ids, mask)), out, threads(1));
  };
  ids.scalar_type() == ScalarType::Int ? run(int32_t{}) : run(int64_t{});
  return {expert_ids, out_weights, rows, row_tokens, offsets, counts, demand};
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

Tensor grouped_mlp(const Tensor& x, const Tensor& gate_up_proj, const Tensor& down_proj,
                   const MaybeTensor& gate_up_bias, const MaybeTensor& down_bias, const Tensor& expert_offsets,
                   const Tensor& tokens_per_expert, const MaybeTensor& row_tokens, Strings activation, Strings layout) {
  constexpr const char* kPlain = "_no_mul";
  const size_t suffix = activation.rfind(kPlain);
  const std::string name = activation.substr(0, suffix);
  GroupedMlp config{};
  config.gated = suffix == std::string::npos;
  check_grouped_mlp(x, gate_up_proj, down_proj, gate_up_bias, down_bias, expert_offsets, tokens_per_expert, row_tokens,
                    config.gated);
  config.num_experts = down_proj.size(0);
  config.hidden = down_proj.size(1);
  config.intermediate = down_proj.size(2);
  config.activation = parse<Activation>("activation", name,
                                        {{"silu", Activation::silu},
                                         {"gelu", Activation::gelu},
                                         {"gelu_tanh", Activation::gelu_tanh},
                                         {"swigluoai", Activation::swigluoai},
                                         {"relu", Activation::relu},
                                         {"relu2", Activation::relu2}});
  config.interleaved = parse<bool>("layout", layout, {{"concat", false}, {"interleaved", true}});
  const Tensor in = dense(x), up = dense(gate_up_proj), down = dense(down_proj);
  const Tensor offsets = dense(expert_offsets), counts = dense(tokens_per_expert);
  const MaybeTensor up_bias = dense(gate_up_bias), out_bias = dense(down_bias), tokens = dense(row_tokens);
  const int64_t rows = tokens ? tokens->size(0) : in.size(0);
  if (tokens) check_indices(*tokens, "row_tokens", in.size(0));
  check_offsets(offsets, counts, rows);
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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(capmoe, CPU, m) {
  m.impl("gate", TORCH_BOX(&gate));
  m.impl("select", TORCH_BOX(&select));
  m.impl("dispatch", TORCH_BOX(&dispatch));
  m.impl("grouped_mlp", TORCH_BOX(&grouped_mlp));
  m.impl("combine", TORCH_BOX(&combine));
}

}  // namespace capmoe
