// What each op accepts: one check per op, the same words on every backend.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "tensor.h"

namespace capmoe {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

// An argument and what an error calls it; null where it was left out.
struct Named {
  const char* name;
  const Tensor* tensor;
  Named(const char* name, const Tensor& tensor) : name(name), tensor(&tensor) {}
  Named(const char* name, const std::optional<Tensor>& tensor) : name(name), tensor(tensor ? &*tensor : nullptr) {}
};

inline std::string device_name(const Tensor& tensor) {
  const int32_t index = tensor.get_device_index();  // -1: the CPU
  return index < 0 ? "cpu" : "cuda:" + std::to_string(index);
}

inline void check_device(const Tensor& like, std::initializer_list<Named> others) {
  for (const Named& other : others) {
    STD_TORCH_CHECK(other.tensor == nullptr || other.tensor->get_device_index() == like.get_device_index(), other.name,
                    " must be on ", device_name(like), " like the other tensors, got ", device_name(*other.tensor));
  }
}

inline void check_float(const Tensor& tensor, const char* name) {
  const ScalarType dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, name,
                  " must be float32, bfloat16 or float16, got ", toString(dtype));
}

inline void check_gate(const Tensor& router_logits, const std::optional<Tensor>& selection_bias, int64_t top_k,
                       int64_t num_groups) {
  check_shape(router_logits, "router_logits", {-1, -1});
  check_float(router_logits, "router_logits");
  const int64_t num_experts = router_logits.size(1);
  STD_TORCH_CHECK(top_k >= 1 && top_k <= num_experts, "top_k must be from 1 to ", num_experts, ", got ", top_k);
  STD_TORCH_CHECK(num_groups >= 1 && num_experts % num_groups == 0, "num_groups must divide ", num_experts, ", got ",
                  num_groups);
  if (selection_bias) check(*selection_bias, "selection_bias", {num_experts}, ScalarType::Float);
}

inline void check_extras(int64_t num_experts, int64_t extra, int64_t local_start, int64_t local_stop) {
  STD_TORCH_CHECK(
      0 <= local_start && local_start <= local_stop && local_stop <= num_experts && extra >= 0 && extra <= num_experts,
      "local_start, local_stop and extra must be from 0 to ", num_experts);
}

inline void check_groups(int64_t num_groups, int64_t topk_groups) {
  STD_TORCH_CHECK(1 <= topk_groups && topk_groups <= num_groups, "topk_groups must be from 1 to ", num_groups, ", got ",
                  topk_groups);
}

inline void check_tokens(const std::optional<Tensor>& token_mask, const std::optional<Tensor>& token_priority,
                         int64_t tokens) {
  if (token_mask) check(*token_mask, "token_mask", {tokens}, ScalarType::Bool);
  if (token_priority) check(*token_priority, "token_priority", {tokens}, ScalarType::Long);
}

inline void check_select(const Tensor& topk_ids, const Tensor& weights, const Tensor& scores,
                         const std::optional<Tensor>& token_mask, const std::optional<Tensor>& token_priority) {
  check_shape(topk_ids, "topk_ids", {-1, -1});
  const ScalarType ids = topk_ids.scalar_type();
  STD_TORCH_CHECK(ids == ScalarType::Int || ids == ScalarType::Long, "topk_ids must be int32 or int64, got ",
                  toString(ids));
  const int64_t tokens = topk_ids.size(0), columns = topk_ids.size(1);
  check(weights, "weights", {tokens, columns}, ScalarType::Float);
  check(scores, "scores", {tokens, columns}, ScalarType::Float);
  check_tokens(token_mask, token_priority, tokens);
}

inline void check_bound(int64_t num_experts, int64_t top_k, const std::optional<std::vector<int64_t>>& factor,
                        const std::optional<int64_t>& limit, const std::optional<int64_t>& max_experts_per_token,
                        int64_t reroute_rounds, int64_t experts_per_budget) {
  STD_TORCH_CHECK(num_experts >= 1 && num_experts < kMaxInt32, "num_experts must be >= 1 and fit 32 bits, got ",
                  num_experts);
  STD_TORCH_CHECK(top_k >= 0, "top_k must be >= 0, got ", top_k);
  STD_TORCH_CHECK(experts_per_budget >= 1 && num_experts % experts_per_budget == 0, "experts_per_budget must divide ",
                  num_experts, ", got ", experts_per_budget);
  STD_TORCH_CHECK(!factor || (factor->size() == 2 && (*factor)[0] >= 0 && (*factor)[1] >= 1),
                  "factor must be a numerator >= 0 and a denominator >= 1");
  STD_TORCH_CHECK(!limit || *limit >= 0, "limit must be >= 0");
  STD_TORCH_CHECK(!max_experts_per_token || *max_experts_per_token >= 1, "max_experts_per_token must be >= 1");
  STD_TORCH_CHECK(reroute_rounds >= 1, "reroute_rounds must be >= 1, got ", reroute_rounds);
}

inline void check_rows(int64_t num_experts, int64_t experts_per_budget, bool padded, int64_t row_alignment,
                       int64_t num_rows) {
  STD_TORCH_CHECK(row_alignment >= 1 && row_alignment <= int64_t{1} << 20,
                  "row_alignment must be from 1 to 2**20, got ", row_alignment);
  STD_TORCH_CHECK(num_rows >= 0 && num_rows <= kMaxInt32, "num_rows must be >= 0 and fit 32 bits, got ", num_rows);
  STD_TORCH_CHECK(!padded || experts_per_budget == 1, "layout must be packed where experts share a budget");
  STD_TORCH_CHECK(!padded || num_rows % num_experts == 0, "num_rows must be a multiple of ", num_experts, ", got ",
                  num_rows);
}

inline void check_dispatch(const Tensor& hidden_states, const Tensor& row_tokens) {
  check_shape(hidden_states, "hidden_states", {-1, -1});
  check_float(hidden_states, "hidden_states");
  check(row_tokens, "row_tokens", {-1}, ScalarType::Int);
}

inline void check_experts(const Tensor& gate_up_proj, const Tensor& down_proj,
                          const std::optional<Tensor>& gate_up_bias, const std::optional<Tensor>& down_bias,
                          bool gated) {
  check_shape(down_proj, "down_proj", {-1, -1, -1});
  check_float(down_proj, "down_proj");
  STD_TORCH_CHECK(down_proj.size(1) >= 1 && down_proj.size(2) >= 1, "down_proj must have H >= 1 and F >= 1, got ",
                  down_proj.size(1), " and ", down_proj.size(2));
  const ScalarType dtype = down_proj.scalar_type();
  const int64_t experts = down_proj.size(0), hidden = down_proj.size(1), up = down_proj.size(2) * (gated ? 2 : 1);
  check(gate_up_proj, "gate_up_proj", {experts, up, hidden}, dtype);
  if (gate_up_bias) check(*gate_up_bias, "gate_up_bias", {experts, up}, dtype);
  if (down_bias) check(*down_bias, "down_bias", {experts, hidden}, dtype);
}

// `hidden` is H, which packed weights don't tell.
inline void check_grouped_mlp(const Tensor& x, int64_t hidden, const Tensor& down_proj, const Tensor& expert_offsets,
                              const Tensor& tokens_per_expert, const std::optional<Tensor>& row_tokens) {
  const int64_t experts = down_proj.size(0);
  check(x, "x", {-1, hidden}, down_proj.scalar_type());
  check(expert_offsets, "expert_offsets", {experts + 1}, ScalarType::Int);
  check(tokens_per_expert, "tokens_per_expert", {experts}, ScalarType::Int);
  if (row_tokens) check(*row_tokens, "row_tokens", {-1}, ScalarType::Int);
}

inline void check_moe(const Tensor& hidden_states, int64_t hidden, const Tensor& router_logits, const Tensor& down_proj,
                      const std::optional<Tensor>& token_mask, const std::optional<Tensor>& token_priority) {
  const int64_t tokens = router_logits.size(0);
  check(hidden_states, "hidden_states", {tokens, hidden}, down_proj.scalar_type());
  STD_TORCH_CHECK(router_logits.size(1) == down_proj.size(0), "router_logits must have a column for each of the ",
                  down_proj.size(0), " experts, got ", router_logits.size(1));
  check_tokens(token_mask, token_priority, tokens);
}

inline void check_combine(const Tensor& y, const Tensor& rows, const Tensor& weights) {
  check_shape(y, "y", {-1, -1});
  check_float(y, "y");
  check(rows, "rows", {-1, -1}, ScalarType::Int);
  check(weights, "weights", {rows.size(0), rows.size(1)}, ScalarType::Float);
}

}  // namespace capmoe
