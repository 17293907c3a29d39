// Sizes the host knows: capmoe_kernels/bounds.py in C++.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace capmoe {

inline int64_t align_rows(int64_t rows, int64_t alignment) { return (rows + alignment - 1) / alignment * alignment; }

struct Bound {
  int64_t num_experts, top_k, experts_per_budget;
  std::optional<std::vector<int64_t>> factor;  // numerator, denominator
  std::optional<int64_t> limit;
  bool ceil;

  // min(C, tokens)
  int64_t capacity(int64_t tokens) const {
    if (limit) return std::min(*limit, tokens);
    if (!factor) return tokens;
    const int64_t denominator = (*factor)[1] * num_experts;
    const int64_t numerator = (*factor)[0] * top_k * tokens + (ceil ? denominator - 1 : 0);
    return std::min(numerator / denominator, tokens);
  }

  int64_t packed_rows(int64_t tokens, int64_t pairs_per_token, int64_t alignment) const {
    const int64_t pairs = tokens * pairs_per_token;
    const int64_t spread = align_rows(pairs + std::min(num_experts, pairs) * (alignment - 1), alignment);
    // Where experts share a budget, it may be spread over them so that each is rounded up.
    const int64_t most = capacity(tokens);
    const int64_t full = experts_per_budget > 1 ? most + alignment - 1 : align_rows(most, alignment);
    return std::min(spread, align_rows(num_experts * full, alignment));
  }
};

}  // namespace capmoe
