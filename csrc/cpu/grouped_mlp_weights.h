// An expert's weights, piece by piece, as a kernel wants them: where they are so already they stay in place, else a
// piece is turned or widened into a scratch that stays in the cache. Include inside the target region of one file.
#pragma once

#include "packed.h"
#include "simd.h"

namespace capmoe::cpu {
namespace {

// Weight rows sixteen side by side, [k][16] or of pairs [k / 2][16][2], and the next blocks of a group.
template <class W>
struct Panel {
  const W* data;
  int64_t stride;  // from a block to the next
};

// Packed, or as they came.
template <class T>
struct Matrix {
  PlainMatrix<T> plain;
  bool packed;

  int64_t block_size() const { return padded_columns<T>(plain.columns) * kBlock; }
  const T* block(int64_t i) const { return plain.data + i * block_size(); }
};

// The hardware's own prefetch loses so many rows: they are asked for a piece ahead.
constexpr int64_t kAheadBytes = 512;

template <class T>
constexpr int64_t kAhead = kAheadBytes / static_cast<int64_t>(sizeof(T));

template <class T>
inline void ask_ahead(const T* const rows[kBlock], int64_t k) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kBlock; ++i) __builtin_prefetch(rows[i] + k + kAhead<T>);
}

// `columns` columns of sixteen rows, zeros where a row is null, turned to [count][16].
template <class T>
inline void turn(const T* const rows[kBlock], int64_t columns, int64_t count, float* to) {
  for (int64_t k = 0; k < count; k += kBlock) {
    const int64_t here = std::clamp<int64_t>(columns - k, 0, kBlock);
    if (k % (64 / sizeof(T)) == 0) ask_ahead(rows, k);
#if CAPMOE_LANES == 16
    if (here == kBlock) {
      transpose_rows(rows, k, to + k * kBlock);
      continue;
    }
#endif
    alignas(64) float tile[kBlock * kBlock] = {};
    for (int64_t i = 0; i < kBlock; ++i) {
      if (rows[i]) to_floats(rows[i] + k, tile + i * kBlock, here);
    }
    transpose(tile, kBlock, kBlock, to + k * kBlock);
  }
}

#if CAPMOE_LANES == 16
// The same for pairs: [count / 2][16][2].
inline void turn(const BFloat16* const rows[kBlock], int64_t columns, int64_t count, BFloat16* to) {
  for (int64_t k = 0; k < count; k += 2 * kBlock) {
    const int64_t here = std::clamp<int64_t>(columns - k, 0, 2 * kBlock);
    const auto mask = static_cast<__mmask32>((int64_t{1} << here) - 1);
    ask_ahead(rows, k);
    __m512i pairs[kBlock];
#pragma GCC unroll 16
    for (int i = 0; i < kBlock; ++i) {
      pairs[i] = rows[i] ? _mm512_maskz_loadu_epi16(mask, rows[i] + k) : _mm512_setzero_si512();
    }
    transpose(pairs);
#pragma GCC unroll 16
    for (int i = 0; i < kBlock; ++i) _mm512_storeu_si512(to + (k + 2 * i) * kBlock, pairs[i]);
  }
}
#endif

// `count` columns of a packed block to float32.
inline void widen(const Half* from, int64_t count, float* to) { to_floats(from, to, count * kBlock); }

inline void widen(const BFloat16* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count * kBlock; i += 2 * kLanes, from += 2 * kLanes) {
    const int64_t at = i / (2 * kBlock) * (2 * kBlock) + i % (2 * kBlock) / 2;
    const auto [even, odd] = load_pairs(from);
    store(to + at, even);
    store(to + at + kBlock, odd);
  }
}

// What the next groups of weights need of memory, asked for while a kernel multiplies.
struct Ahead {
  const char* at = nullptr;
  int64_t stride = 0;    // from a block to the next
  int64_t per_step = 0;  // lines of each block
  int64_t steps = 0;     // of a tile

  template <int kCount>
  void ask(int64_t step) const {
    for (int64_t line = step * per_step; line < (step + 1) * per_step; ++line) {
#pragma GCC unroll 4
      for (int b = 0; b < kCount; ++b) __builtin_prefetch(at + b * stride + 64 * line, 0, 2);
    }
  }
  Ahead from_block(int64_t b) const { return {at + b * stride, stride, per_step, steps}; }
  void next_tile() { at += 64 * per_step * steps; }
};

// Blocks from `first` on, columns from k on, where they are.
template <class T>
Panel<T> panel_in_place(const Matrix<T>& matrix, int64_t first, int64_t k) {
  return {matrix.block(first) + k * kBlock, matrix.block_size()};
}

// `blocks` blocks from `first` on, columns [k, k + count) with their zeros, in `scratch` if they must.
template <class W, class T>
Panel<W> panel_of(const Matrix<T>& matrix, int64_t first, int64_t blocks, int64_t k, int64_t count, W* scratch) {
  if constexpr (std::is_same_v<W, T>) {
    if (matrix.packed) return panel_in_place(matrix, first, k);
  }
  for (int64_t b = 0; b < blocks; ++b) {
    W* to = scratch + b * count * kBlock;
    if constexpr (!std::is_same_v<W, T>) {
      if (matrix.packed) {
        widen(matrix.block(first + b) + k * kBlock, count, to);
        continue;
      }
    }
    const T* rows[kBlock];
    matrix.plain.rows_of(first + b, k, rows);
    turn(rows, matrix.plain.columns - k, count, to);
  }
  return {scratch, count * kBlock};
}

}  // namespace
}  // namespace capmoe::cpu
