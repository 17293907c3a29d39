// What bfloat16 paths share: tokens and hidden values are kept as bfloat16, weights as pairs.
#pragma once

#include "grouped_mlp_layer.h"

namespace capmoe::cpu {
namespace {

struct PairPath {
  using Scalar = BFloat16;
  using Weight = BFloat16;
  using Token = BFloat16;

  static int64_t token_bytes(bool) { return 1 << 20; }  // half of what the second nearest cache holds

  static void store_hidden(const Vec (&values)[1], BFloat16* to) { store_floats(to, values[0], kBlock); }

  static bool multiply_few(const Matrix<BFloat16>&, int64_t, int64_t, const BFloat16*, int64_t, float*) {
    return false;
  }

  template <class Body>
  static void with_panel(const Matrix<BFloat16>& matrix, int64_t first, int64_t blocks, int64_t k, int64_t count,
                         int64_t, BFloat16* scratch, const Body& body) {
    body(panel_of<BFloat16>(matrix, first, blocks, k, count, scratch));
  }
};

}  // namespace
}  // namespace capmoe::cpu
