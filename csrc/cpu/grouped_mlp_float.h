// The grouped MLP with vectors: a Path (grouped_mlp_layer.h) for float32 sums of float32 products.
//
// 16-bit weights are widened, a piece at a time, into a scratch; for a single tile of tokens in registers. Include
// inside the target region of one file, after defining CAPMOE_LANES.
#pragma once

#include "grouped_mlp_layer.h"

namespace capmoe::cpu {
namespace {

constexpr int kParts = kBlock / kLanes;  // vectors of a block

// sums [kRows, kColumns] of kCount blocks (+)= weights * tokens. A block of k is summed by itself and then added, which
// rounds less than one long sum.
template <int kRows, int kCount, int64_t kRowSize, int64_t kColumns, class W>
void multiply_block(Panel<W> weights, const float* tokens, int64_t k, float* sums, bool accumulate, Ahead ahead) {
  Vec sum[kRows][kCount][kParts] = {};
  const auto step = [&](const W* w, const float* x) __attribute__((always_inline)) {
    if constexpr (kPairOf<W> == 1) {
#pragma GCC unroll 4
      for (int b = 0; b < kCount; ++b) {
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) {
          const Vec column = load_floats(w + b * weights.stride + part * kLanes);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) sum[r][b][part] += column * x[r * kRowSize];
        }
      }
    } else {
#pragma GCC unroll 4
      for (int b = 0; b < kCount; ++b) {
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) {
          const auto [even, odd] = load_pairs(w + b * weights.stride + 2 * part * kLanes);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            sum[r][b][part] += even * x[r * kRowSize];
            sum[r][b][part] += odd * x[r * kRowSize + 1];
          }
        }
      }
    }
  };
  for (int64_t i = 0; i < k; i += kBlock) {  // k is a multiple of it
    ahead.ask<kCount>(i / kBlock);
#pragma GCC unroll 16
    for (int64_t j = 0; j < kBlock; j += kPairOf<W>) step(weights.data + (i + j) * kBlock, tokens + i + j);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int b = 0; b < kCount; ++b) {
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        float* to = sums + r * kColumns + b * kBlock + part * kLanes;
        store(to, accumulate ? load(to) + sum[r][b][part] : sum[r][b][part]);
      }
    }
  }
}

#if CAPMOE_LANES == 16
// multiply_block of weights as they came for all of k, a block at a time, without a scratch: few tokens wait for
// memory, which likes long runs of the same rows. The same sums, in the same order.
template <int kRows, int64_t kRowSize, class T>
void multiply_plain(const Matrix<T>& matrix, int64_t block, const float* tokens, int64_t tile_rows, float* sums,
                    int64_t columns_of_sums) {
  const int64_t columns = matrix.plain.columns;
  const T *rows[kBlock], *next[kBlock];
  matrix.plain.rows_of(block, 0, rows);
  matrix.plain.rows_of(block + 1, -columns, next);  // null beyond the last
  __m512 total[kRows] = {};
  for (int64_t k = 0; k < columns; k += kRowSize, tokens += tile_rows * kRowSize) {
    __m512 sum[kRows] = {};
    const int64_t count = std::min(kRowSize, columns - k);
    for (int64_t i = 0; i < count; i += kBlock) {
      if ((k + i) % (64 / sizeof(T)) == 0) ask_ahead(k + i + kAhead<T> < columns ? rows : next, k + i);
      __m512i column[kBlock];
      load_rows(rows, k + i, count - i, column);
      transpose(column);
#pragma GCC unroll 16
      for (int j = 0; j < kBlock; ++j) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sum[r] = _mm512_fmadd_ps((__m512)column[j], _mm512_set1_ps(tokens[r * kRowSize + i + j]), sum[r]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) total[r] = k == 0 ? sum[r] : _mm512_add_ps(total[r], sum[r]);
  }
  for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(sums + r * columns_of_sums, total[r]);
}
#endif

// multiply_block for a number of rows known at run time, 1 to kRows.
template <int kRows, int kCount, int64_t kRowSize, int64_t kColumns, class... Args>
void multiply_rows(int64_t rows, const Args&... args) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_rows<kRows - 1, kCount, kRowSize, kColumns>(rows, args...);
  }
  multiply_block<kRows, kCount, kRowSize, kColumns>(args...);
}

// kTokens by kTogether blocks are the sums that fit the registers.
template <class T, int kTokens, int kTogether>
struct FloatPath {
  using Scalar = T;
  using Weight = float;
  using Token = float;
  static constexpr int64_t kRows = kTokens, kBlocks = std::max(kTogether, 2), kBlockK = 256, kStep = kBlock;
  struct Session {};

  // What the second nearest cache holds; of more tokens plain weights, which have to be turned again for each block of
  // tokens, still gain.
  static int64_t token_bytes(bool packed) { return packed ? 1 << 20 : 8 << 20; }

  static int64_t row_size(int64_t columns) { return columns == 0 ? 0 : kBlockK; }
  static int64_t place(int64_t row, int64_t column, int64_t) { return row * kBlockK + column; }

  static void copy_row(const T* from, int64_t real, int64_t count, int64_t row, float* tile) {
    float* to = tile + row * kBlockK;
    to_floats(from, to, real);
    std::fill(to + real, to + count, 0.0f);
  }

  static void store_hidden(const Vec (&values)[kParts], float* to) {
    for (int part = 0; part < kParts; ++part) store(to + part * kLanes, values[part]);
  }

#if CAPMOE_LANES == 16
  // All sums of a tile over all of k, of weights as they came; false where that is no gain.
  template <int kCount = kTokens>
  static bool multiply_few(const Matrix<T>& matrix, int64_t first, int64_t blocks, const float* tokens, int64_t rows,
                           float* sums) {
    if (matrix.packed || rows > kTokens) return false;
    if constexpr (kCount > 1) {
      if (rows < kCount) return multiply_few<kCount - 1>(matrix, first, blocks, tokens, rows, sums);
    }
    for (int64_t b = 0; b < blocks; ++b) {
      multiply_plain<kCount, kBlockK>(matrix, first + b, tokens, kRows, sums + b * kBlock, kBlocks * kBlock);
    }
    return true;
  }
#else
  static bool multiply_few(const Matrix<T>&, int64_t, int64_t, const float*, int64_t, float*) { return false; }
#endif

  // Weights that one tile of tokens uses are widened as they are used.
  template <class Body>
  static void with_panel(const Matrix<T>& matrix, int64_t first, int64_t blocks, int64_t k, int64_t count, int64_t rows,
                         float* scratch, const Body& body) {
    if constexpr (!std::is_same_v<T, float>) {
      if (matrix.packed && rows <= kRows) return body(panel_in_place(matrix, first, k));
    }
    body(panel_of<float>(matrix, first, blocks, k, count, scratch));
  }

  template <class W, class Meanwhile>
  static void multiply(Panel<W> weights, int64_t blocks, const float* tokens, int64_t rows, int64_t k, float* sums,
                       bool accumulate, const Ahead& ahead, const Meanwhile& meanwhile) {
    meanwhile(0, kRows);
    constexpr int64_t kColumns = kBlocks * kBlock;
    for (int64_t b = 0; b < blocks;) {
      const Panel<W> here{weights.data + b * weights.stride, weights.stride};
      const Ahead its = ahead.from_block(b);
      const int64_t left = blocks - b;
      if (kTogether >= 4 && left >= 4) {
        multiply_rows<kTokens, std::min(kTogether, 4), kBlockK, kColumns>(rows, here, tokens, k, sums + b * kBlock,
                                                                          accumulate, its);
        b += 4;
      } else if (kTogether >= 2 && left >= 2) {
        multiply_rows<kTokens, std::min(kTogether, 2), kBlockK, kColumns>(rows, here, tokens, k, sums + b * kBlock,
                                                                          accumulate, its);
        b += 2;
      } else {
        multiply_rows<kTokens, 1, kBlockK, kColumns>(rows, here, tokens, k, sums + b * kBlock, accumulate, its);
        b += 1;
      }
    }
  }
};

}  // namespace
}  // namespace capmoe::cpu
