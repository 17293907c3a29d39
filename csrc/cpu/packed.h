// Weights as the CPU's kernels read them: sixteen rows side by side, column after column.
//
// A matrix [N, K] becomes blocks [N / 16][K][16], zeros where N or K come out short; of bfloat16 two columns lie
// together, [N / 16][K / 2][16][2], as dot products of pairs want them. Of gated experts' gate_up_proj the blocks
// alternate: sixteen gate rows, then the sixteen up rows of the same hidden values.
#pragma once

#include <type_traits>

#include "kernels.h"

namespace capmoe::cpu {

constexpr int64_t kBlock = 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

template <class T>
constexpr int64_t kPairOf = std::is_same_v<T, BFloat16> ? 2 : 1;

// K with its zeros. An AMX tile takes 32 columns of bfloat16.
template <class T>
int64_t padded_columns(int64_t k) {
  return round_up(k, kPairOf<T> * kBlock);
}

// An expert's weights as they came: which of their rows are in a block.
template <class T>
struct PlainMatrix {
  const T* data;
  int64_t rows, columns;  // of one half where gated
  bool gated, interleaved;

  int64_t blocks() const { return ceil_div(rows, kBlock) * (gated ? 2 : 1); }

  // Null beyond the last.
  const T* row(int64_t block, int64_t i) const {
    const int64_t unit = (gated ? block / 2 : block) * kBlock + i;
    if (unit >= rows) return nullptr;
    const int64_t up = gated ? block % 2 : 0;
    return data + (interleaved ? 2 * unit + up : up * rows + unit) * columns;
  }

  // A block's rows from column k on.
  void rows_of(int64_t block, int64_t k, const T* out[kBlock]) const {
    for (int64_t i = 0; i < kBlock; ++i) {
      const T* from = row(block, i);
      out[i] = from == nullptr ? nullptr : from + k;
    }
  }
};

}  // namespace capmoe::cpu
