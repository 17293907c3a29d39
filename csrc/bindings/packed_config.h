// The CPU's experts: weights as they came, or packed (csrc/cpu/packed.h), checked and turned into numbers.
#pragma once

#include "../cpu/packed.h"
#include "configs.h"

namespace capmoe {

// K with its zeros, of a packed matrix.
inline int64_t packed_columns(int64_t columns, ScalarType dtype) {
  return cpu::round_up(columns, dtype == ScalarType::BFloat16 ? 2 * cpu::kBlock : cpu::kBlock);
}

inline void check_packed(int64_t hidden, const Tensor& gate_up_proj, const Tensor& down_proj,
                         const MaybeTensor& gate_up_bias, const MaybeTensor& down_bias, bool gated) {
  check_float(down_proj, "down_proj");
  const ScalarType dtype = down_proj.scalar_type();
  const int64_t down_blocks = cpu::ceil_div(hidden, cpu::kBlock), halves = gated ? 2 : 1;
  check_shape(down_proj, "down_proj", {-1, down_blocks, -1, cpu::kBlock});
  const int64_t experts = down_proj.size(0), hidden_columns = packed_columns(hidden, dtype);
  check(gate_up_proj, "gate_up_proj", {experts, -1, hidden_columns, cpu::kBlock}, dtype);
  const int64_t units = gate_up_proj.size(1) / halves, intermediate = units * cpu::kBlock;
  check_shape(gate_up_proj, "gate_up_proj", {experts, units * halves, hidden_columns, cpu::kBlock});
  check_shape(down_proj, "down_proj", {experts, down_blocks, packed_columns(intermediate, dtype), cpu::kBlock});
  if (gate_up_bias) check(*gate_up_bias, "gate_up_bias", {experts, intermediate * halves}, dtype);
  if (down_bias) check(*down_bias, "down_bias", {experts, hidden}, dtype);
}

// H of packed weights is that of the tokens.
inline GroupedMlp experts_config(const Tensor& tokens, const char* name, const Tensor& gate_up_proj,
                                 const Tensor& down_proj, const MaybeTensor& gate_up_bias, const MaybeTensor& down_bias,
                                 Strings activation, Strings layout) {
  const bool gated = is_gated(activation);
  if (layout != "packed") {
    check_experts(gate_up_proj, down_proj, gate_up_bias, down_bias, gated);
    return mlp_config(down_proj, activation, layout);
  }
  check_shape(tokens, name, {-1, -1});
  const int64_t hidden = tokens.size(1);
  check_packed(hidden, gate_up_proj, down_proj, gate_up_bias, down_bias, gated);
  GroupedMlp config = mlp_config(down_proj, activation, "concat");
  config.hidden = hidden;
  config.intermediate = gate_up_proj.size(1) / (gated ? 2 : 1) * cpu::kBlock;
  config.packed = true;
  return config;
}

}  // namespace capmoe
