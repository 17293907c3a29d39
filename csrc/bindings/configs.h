// An op's arguments, checked and turned into the numbers of options.h: the same on every backend.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../options.h"
#include "checks.h"

namespace capmoe {

using Strings = const std::string&;
using MaybeTensor = std::optional<Tensor>;
using MaybeInt = std::optional<int64_t>;
using MaybeFloat = std::optional<double>;
using MaybeInts = std::optional<std::vector<int64_t>>;

inline Gate gate_config(const Tensor& router_logits, const MaybeTensor& selection_bias, int64_t top_k, Strings scoring,
                        Strings renormalize, double scaling, int64_t num_groups, int64_t topk_groups,
                        Strings group_score, Strings drop_score, Strings expand, int64_t extra, int64_t local_start,
                        int64_t local_stop) {
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
  check_extras(config.num_experts, extra, local_start, local_stop);
  const int64_t more = config.expand == Expand::local ? local_stop - local_start : extra;
  config.columns = std::min(config.num_experts, top_k + more);
  check_groups(num_groups, topk_groups);
  return config;
}

inline Bound parse_bound(const MaybeInts& factor, const MaybeInt& limit, Strings rounding) {
  Bound bound{};
  if (factor) bound.numerator = (*factor)[0], bound.denominator = (*factor)[1];
  bound.limit = limit.value_or(-1);
  bound.ceil = parse<bool>("rounding", rounding, {{"ceil", true}, {"floor", false}});
  return bound;
}

inline Policy parse_policy(Strings policy) {
  return parse<Policy>("policy", policy,
                       {{"score", Policy::score},
                        {"keep_first", Policy::keep_first},
                        {"keep_last", Policy::keep_last},
                        {"random", Policy::random}});
}

// Of `tokens` with `columns` candidates each.
inline Select select_config(int64_t tokens, int64_t columns, int64_t num_experts, int64_t top_k,
                            const MaybeInts& factor, const MaybeInt& limit, Strings rounding, Strings policy,
                            Strings expand_priority, const MaybeInt& max_experts_per_token, int64_t reroute_rounds,
                            int64_t experts_per_budget, int64_t seed, const MaybeFloat& kept_weight_sum, Strings layout,
                            int64_t row_alignment, int64_t num_rows) {
  check_bound(num_experts, top_k, factor, limit, max_experts_per_token, reroute_rounds, experts_per_budget);
  const bool padded = parse<bool>("layout", layout, {{"packed", false}, {"padded", true}});
  check_rows(num_experts, experts_per_budget, padded, row_alignment, num_rows);
  Select config{};
  config.tokens = tokens;
  config.columns = columns;
  config.num_experts = num_experts;
  config.top_k = top_k;
  config.bound = parse_bound(factor, limit, rounding);
  config.unit = experts_per_budget;
  config.max_per_token = max_experts_per_token.value_or(columns);
  config.reroute_rounds = reroute_rounds;
  config.row_alignment = row_alignment;
  config.padded_rows = padded ? num_rows / num_experts : -1;
  config.rows = num_rows;
  config.policy = parse_policy(policy);
  config.topk_first = parse<bool>("expand_priority", expand_priority, {{"score", false}, {"topk_first", true}});
  config.seed = static_cast<uint64_t>(seed);
  config.kept_weight_sum = kept_weight_sum ? static_cast<float>(*kept_weight_sum) : -1.0f;
  return config;
}

// What moe asks of select: a token's kept weights sum to `scaling` where they are divided by what was kept.
inline MaybeFloat kept_weight_sum_of(Strings renormalize, double scaling) {
  return renormalize == "kept" ? MaybeFloat(scaling) : std::nullopt;
}

inline bool is_gated(Strings activation) { return activation.rfind("_no_mul") == std::string::npos; }

inline GroupedMlp mlp_config(const Tensor& down_proj, Strings activation, Strings layout) {
  GroupedMlp config{};
  config.num_experts = down_proj.size(0);
  config.hidden = down_proj.size(1);
  config.intermediate = down_proj.size(2);
  config.gated = is_gated(activation);
  config.activation = parse<Activation>("activation", activation.substr(0, activation.rfind("_no_mul")),
                                        {{"silu", Activation::silu},
                                         {"gelu", Activation::gelu},
                                         {"gelu_tanh", Activation::gelu_tanh},
                                         {"swigluoai", Activation::swigluoai},
                                         {"relu", Activation::relu},
                                         {"relu2", Activation::relu2}});
  config.interleaved = parse<bool>("layout", layout, {{"concat", false}, {"interleaved", true}}) && config.gated;
  return config;
}

// What capmoe::select returns, before a kernel fills it.
struct Selected {
  Tensor expert_ids, weights, rows, row_tokens, expert_offsets, tokens_per_expert, demand_per_expert;

  Selected(const Tensor& like, const Select& config)
      : expert_ids(new_tensor(like, {config.tokens, config.columns}, ScalarType::Int)),
        weights(new_tensor(like, {config.tokens, config.columns}, ScalarType::Float)),
        rows(new_tensor(like, {config.tokens, config.columns}, ScalarType::Int)),
        row_tokens(new_tensor(like, {config.rows}, ScalarType::Int)),
        expert_offsets(new_tensor(like, {config.num_experts + 1}, ScalarType::Int)),
        tokens_per_expert(new_tensor(like, {config.num_experts}, ScalarType::Int)),
        demand_per_expert(new_tensor(like, {config.num_experts}, ScalarType::Int)) {}

  Selection pointers() const {
    return {write<int32_t>(expert_ids),       write<float>(weights),          write<int32_t>(rows),
            write<int32_t>(row_tokens),       write<int32_t>(expert_offsets), write<int32_t>(tokens_per_expert),
            write<int32_t>(demand_per_expert)};
  }
};

using SelectedTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline SelectedTuple as_tuple(const Selected& out) {
  return {out.expert_ids,        out.weights,          out.rows, out.row_tokens, out.expert_offsets,
          out.tokens_per_expert, out.demand_per_expert};
}

}  // namespace capmoe
