// The grouped MLP as blocks of a matrix product, for any instruction set.
//
// Weight rows lie sixteen side by side (packed.h), so they fill a vector's lanes or a tile's columns, and a kernel
// multiplies a group of them with a tile of tokens. A row's sum runs over k in one order, whatever its neighbours are
// and however many rows its expert has. SwiGLU finds a hidden value's gate and up sums side by side, and both the
// hidden values and y come out as rows.
//
// A Path says how an instruction set does it: Scalar, the type of x, weights and y; Weight, what the kernel multiplies
// with; Token, what the rows of x and the hidden values are kept as; kRows, the tokens of a tile; kBlocks, the blocks
// of a group; kBlockK, the columns that are multiplied before the next group's turn; token_bytes, how much of an
// expert's rows is kept near; and the functions used below. A tile of tokens holds its columns in pieces of kBlockK,
// and place() says where in a piece. Include inside the target region of one file.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "grouped_mlp.h"
#include "grouped_mlp_weights.h"

namespace capmoe::cpu {
namespace {

template <class Path>
class Layer {
 public:
  using T = typename Path::Scalar;
  using Weight = typename Path::Weight;
  using Token = typename Path::Token;
  static constexpr int64_t kRows = Path::kRows, kBlocks = Path::kBlocks, kBlockK = Path::kBlockK;
  static constexpr int64_t kColumns = kBlocks * kBlock;
  static constexpr int64_t kWaveBytes = 16 << 20;

  explicit Layer(const GroupedMlpArgs<T>& args)
      : args_(args),
        size_(args.config),
        x_columns_(padded_columns<T>(size_.hidden)),
        hidden_columns_(padded_columns<T>(size_.intermediate)) {}

  void run() {
    const Buffer hidden(max_wave_tiles() * tile_size(hidden_columns_) * sizeof(Token));
    hidden_ = hidden.as<Token>();
    for (int64_t begin = 0, end; begin < size_.num_experts; begin = end) {
      end = wave_end(begin);
      for_groups(begin, end, up_blocks(), x_columns_,
                 [&](Scratch& scratch, const RowBlock& block, int64_t first, int64_t last) {
                   gate_up(scratch, block, first, last);
                 });
      for_groups(begin, end, ceil_div(size_.hidden, kBlock), hidden_columns_,
                 [&](Scratch& scratch, const RowBlock& block, int64_t first, int64_t last) {
                   down(scratch, block, first, last);
                 });
    }
  }

 private:
  // What one range of the work keeps to itself.
  struct Scratch {
    Scratch(int64_t rows, int64_t columns)
        : tokens(rows / kRows * tile_size(columns) * sizeof(Token)),
          sums(rows * kColumns * sizeof(float)),
          weights(kColumns * std::min(columns, kBlockK) * sizeof(Weight)) {}
    Buffer tokens, sums, weights;
    const RowBlock* gathered = nullptr;  // what `tokens` holds
    typename Path::Session session;
  };

  // Elements of a tile of so many columns.
  static int64_t tile_size(int64_t columns) {
    const int64_t whole = columns / kBlockK * kBlockK;
    return kRows * (whole + Path::row_size(columns - whole));
  }

  int64_t tiles_of(int64_t expert) const { return ceil_div(args_.tokens_per_expert[expert], kRows); }

  int64_t up_blocks() const { return ceil_div(size_.intermediate, kBlock) * (size_.gated ? 2 : 1); }

  // A wave of experts goes through both products before the next: its hidden values stay near, in memory that is
  // used again rather than asked of the system.
  int64_t wave_end(int64_t begin) const {
    const int64_t tile_bytes = tile_size(hidden_columns_) * static_cast<int64_t>(sizeof(Token));
    int64_t end = begin + 1, tiles = tiles_of(begin);
    for (; end < size_.num_experts; ++end) {
      tiles += tiles_of(end);
      if (tiles * tile_bytes > kWaveBytes) break;
    }
    return end;
  }

  int64_t max_wave_tiles() const {
    int64_t most = 0;
    for (int64_t begin = 0, end; begin < size_.num_experts; begin = end) {
      end = wave_end(begin);
      int64_t tiles = 0;
      for (int64_t expert = begin; expert < end; ++expert) tiles += tiles_of(expert);
      most = std::max(most, tiles);
    }
    return most;
  }

  // As many rows of an expert as stay near.
  int64_t max_rows(int64_t columns) const {
    const int64_t bytes = columns * static_cast<int64_t>(sizeof(Token));
    return std::clamp<int64_t>(Path::token_bytes(size_.packed) / bytes / kRows, ceil_div(64, kRows), 1024 / kRows) *
           kRows;
  }

  // Calls task(scratch, block, begin, end) for weight blocks [begin, end) of every block of rows. The work is cut by
  // tiles times groups, evenly among the threads; a group goes to whom its first tile belongs.
  template <class Task>
  void for_groups(int64_t first_expert, int64_t last_expert, int64_t weight_blocks, int64_t columns,
                  const Task& task) const {
    const std::vector<RowBlock> blocks =
        row_blocks(args_.expert_offsets, args_.tokens_per_expert, first_expert, last_expert, max_rows(columns), kRows);
    const int64_t groups = ceil_div(weight_blocks, kBlocks);
    int64_t total = 0, most_rows = 0;
    for (const RowBlock& block : blocks) {
      total += groups * ceil_div(block.rows, kRows);
      most_rows = std::max(most_rows, block.rows);
    }
    (*args_.parallel_for)(total, [&](int64_t begin, int64_t end) {
      Scratch scratch(round_up(most_rows, kRows), columns);
      int64_t before = 0;
      for (const RowBlock& block : blocks) {
        const int64_t tiles = ceil_div(block.rows, kRows);
        const int64_t first = std::clamp<int64_t>(ceil_div(begin - before, tiles), 0, groups);
        const int64_t last = std::clamp<int64_t>(ceil_div(end - before, tiles), 0, groups);
        if (first < last) task(scratch, block, first * kBlocks, std::min(last * kBlocks, weight_blocks));
        before += groups * tiles;
      }
      finish_streams();
    });
  }

  void gate_up(Scratch& scratch, const RowBlock& block, int64_t begin, int64_t end) const {
    const int64_t h = size_.hidden, f = size_.intermediate;
    Matrix<T> matrix{{args_.gate_up_proj, f, h, size_.gated, size_.interleaved}, size_.packed};
    matrix.plain.data +=
        block.expert * (size_.packed ? up_blocks() * matrix.block_size() : (size_.gated ? 2 : 1) * f * h);
    gather(scratch, block);
    multiply(scratch, matrix, begin, end, block, scratch.tokens.template as<Token>(), x_columns_,
             [&](const float* sums, int64_t first, int64_t blocks, int64_t tile, int64_t begin_row, int64_t end_row) {
               store_hidden(sums, block, first, blocks, tile, begin_row, end_row);
             });
    if (end == up_blocks()) pad_hidden(block);
  }

  void down(Scratch& scratch, const RowBlock& block, int64_t begin, int64_t end) const {
    const int64_t h = size_.hidden, f = size_.intermediate;
    Matrix<T> matrix{{args_.down_proj, h, f, false, false}, size_.packed};
    matrix.plain.data += block.expert * (size_.packed ? ceil_div(h, kBlock) * matrix.block_size() : h * f);
    multiply(scratch, matrix, begin, end, block, hidden_of(block), hidden_columns_,
             [&](const float* sums, int64_t first, int64_t blocks, int64_t tile, int64_t begin_row, int64_t end_row) {
               store_y(sums, block, first, blocks, tile, begin_row, end_row);
             });
  }

  // The weights of blocks from `first` on, columns [k, k + kBlockK), asked for during `tiles` tiles of `steps` steps.
  static Ahead ahead_of(const Matrix<T>& matrix, int64_t first, int64_t k, int64_t columns, int64_t tiles,
                        int64_t steps) {
    if (!matrix.packed) return {};
    constexpr int64_t kBytes = sizeof(T);
    const int64_t lines = std::min(kBlockK, columns - k) * kBlock * kBytes / 64;
    return {reinterpret_cast<const char*>(matrix.block(first) + k * kBlock), matrix.block_size() * kBytes,
            ceil_div(lines, tiles * steps), steps};
  }

  // Sums of weight blocks [begin, end) for all rows of a block, handed to `store` tile by tile, some
  // rows at a time: [kRows, kColumns].
  template <class Store>
  void multiply(Scratch& scratch, const Matrix<T>& matrix, int64_t begin, int64_t end, const RowBlock& block,
                const Token* tokens, int64_t columns, const Store& store) const {
    const int64_t tiles = ceil_div(block.rows, kRows), size = tile_size(columns);
    float* sums = scratch.sums.template as<float>();
    for (int64_t first = begin; first < end; first += kBlocks) {
      const int64_t blocks = std::min(kBlocks, end - first);
      if (Path::multiply_few(matrix, first, blocks, tokens, block.rows, sums)) {
        store(sums, first, blocks, 0, 0, block.rows);
        continue;
      }
      for (int64_t k = 0; k < columns; k += kBlockK) {
        const int64_t count = std::min(kBlockK, columns - k);
        const Token* piece = tokens + k * kRows;
        const bool last = k + count == columns;
        const int64_t steps = ceil_div(count, Path::kStep);
        Ahead ahead;
        if (!last) {
          ahead = ahead_of(matrix, first, k + count, columns, tiles, steps);
        } else if (first + kBlocks < end) {
          ahead = ahead_of(matrix, first + kBlocks, 0, columns, tiles, steps);
        }
        Path::with_panel(matrix, first, blocks, k, count, block.rows, scratch.weights.template as<Weight>(),
                         [&](auto panel) {
                           for (int64_t tile = 0; tile < tiles; ++tile) {
                             const int64_t rows = std::min(kRows, block.rows - tile * kRows);
                             // A kernel may do this between its steps: the tile before is full.
                             const auto meanwhile = [&](int64_t begin_row, int64_t end_row) {
                               if (!last || tile == 0) return;
                               store(sums + (tile - 1) * kRows * kColumns, first, blocks, tile - 1, begin_row, end_row);
                             };
                             Path::multiply(panel, blocks, piece + tile * size, rows, count,
                                            sums + tile * kRows * kColumns, k > 0, ahead, meanwhile);
                             ahead.next_tile();
                           }
                         });
        if (last) {
          store(sums + (tiles - 1) * kRows * kColumns, first, blocks, tiles - 1, 0, block.rows - (tiles - 1) * kRows);
        }
      }
    }
  }

  // A block's rows of x as tiles.
  void gather(Scratch& scratch, const RowBlock& block) const {
    if (scratch.gathered == &block) return;
    scratch.gathered = &block;
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t row = args_.row_tokens ? args_.row_tokens[block.row + i] : block.row + i;
      const T* from = args_.x + row * size_.hidden;
      Token* tile = scratch.tokens.template as<Token>() + i / kRows * tile_size(x_columns_);
      for (int64_t k = 0; k < x_columns_; k += kBlockK) {
        const int64_t count = std::min(kBlockK, x_columns_ - k);
        Path::copy_row(from + k, std::min(count, size_.hidden - k), count, i % kRows, tile + k * kRows);
      }
    }
  }

  Token* hidden_of(const RowBlock& block) const { return hidden_ + block.tile * tile_size(hidden_columns_); }

  // Calls body(row, where): sixteen hidden values of a tile's row begin there.
  template <class Body>
  void for_hidden(const RowBlock& block, int64_t tile, int64_t begin_row, int64_t end_row, int64_t column,
                  const Body& body) const {
    const int64_t k = column / kBlockK * kBlockK, count = std::min(kBlockK, hidden_columns_ - k);
    Token* piece = hidden_of(block) + tile * tile_size(hidden_columns_) + k * kRows;
    for (int64_t r = begin_row; r < end_row; ++r) body(r, piece + Path::place(r, column - k, count));
  }

  void store_hidden(const float* sums, const RowBlock& block, int64_t first, int64_t blocks, int64_t tile,
                    int64_t begin_row, int64_t end_row) const {
    with_activation(size_.activation, [&](auto activation) {
      if (size_.gated) {
        store_activated<2>(sums, block, first, blocks, tile, begin_row, end_row,
                           [&](Vec gate, Vec up) { return activation.gated(gate, up); });
      } else {
        store_activated<1>(sums, block, first, blocks, tile, begin_row, end_row,
                           [&](Vec gate, Vec) { return activation.plain(gate); });
      }
    });
  }

  // kStep: blocks that make sixteen hidden values.
  template <int kStep, class Activate>
  void store_activated(const float* sums, const RowBlock& block, int64_t first, int64_t blocks, int64_t tile,
                       int64_t begin_row, int64_t end_row, const Activate& activate) const {
    constexpr int kParts = kBlock / kLanes;
    for (int64_t b = 0; b < blocks; b += kStep) {
      const int64_t unit = (first + b) / kStep * kBlock;
      Vec gate_add[kParts] = {}, up_add[kParts] = {};
      if (args_.gate_up_bias) {
        alignas(64) float gate_bias[kBlock] = {}, up_bias[kBlock] = {};
        biases(block.expert, unit, gate_bias, up_bias);
        std::memcpy(gate_add, gate_bias, sizeof(gate_bias));
        std::memcpy(up_add, up_bias, sizeof(up_bias));
      }
      for_hidden(block, tile, begin_row, end_row, unit, [&](int64_t r, Token* to) {
        const float* from = sums + r * kColumns + b * kBlock;
        Vec values[kParts];
        for (int part = 0; part < kParts; ++part) {
          const Vec up = kStep == 2 ? load(from + kBlock + part * kLanes) + up_add[part] : Vec{};
          values[part] = activate(load(from + part * kLanes) + gate_add[part], up);
        }
        Path::store_hidden(values, to);
      });
    }
  }

  // Of sixteen hidden values: what is added to their gate, or only, sums and to their up sums.
  void biases(int64_t expert, int64_t unit, float* gate, float* up) const {
    const int64_t f = size_.intermediate, step = size_.interleaved ? 2 : 1;
    const T* bias = args_.gate_up_bias + expert * (size_.gated ? 2 * f : f);
    for (int64_t i = 0; i < std::min(kBlock, f - unit); ++i) {
      gate[i] = to_float(bias[step * (unit + i)]);
      if (size_.gated) up[i] = to_float(bias[step * (unit + i) + (size_.interleaved ? 1 : f)]);
    }
  }

  // Zeros behind the last block of hidden values, which the second product multiplies with its weights' zeros.
  void pad_hidden(const RowBlock& block) const {
    const Vec zeros[kBlock / kLanes] = {};
    for (int64_t column = round_up(size_.intermediate, kBlock); column < hidden_columns_; column += kBlock) {
      for (int64_t row = 0; row < block.rows; row += kRows) {
        for_hidden(block, row / kRows, 0, std::min(kRows, block.rows - row), column,
                   [&](int64_t, Token* to) { Path::store_hidden(zeros, to); });
      }
    }
  }

  void store_y(const float* sums, const RowBlock& block, int64_t first, int64_t blocks, int64_t tile, int64_t begin_row,
               int64_t end_row) const {
    constexpr int64_t kTogether = kLineBlocks<T>;
    for (int64_t b = 0; b < blocks; b += kTogether) {
      const int64_t column = (first + b) * kBlock, count = std::min(kTogether * kBlock, size_.hidden - column);
      alignas(64) float bias[kTogether * kBlock] = {};
      if (args_.down_bias) to_floats(args_.down_bias + block.expert * size_.hidden + column, bias, count);
      T* y = args_.y + (block.row + tile * kRows) * size_.hidden + column;
      const bool past_the_caches = args_.y_is_large && count == kTogether * kBlock && blocks - b >= kTogether;
      for (int64_t r = begin_row; r < end_row; ++r) {
        const float* from = sums + r * kColumns + b * kBlock;
        T* to = y + r * size_.hidden;
        if (past_the_caches) {
          stream_line(from, bias, to);
        } else {
          for (int64_t i = 0; i < std::min(count, (blocks - b) * kBlock); i += kBlock) {
            store_row(from + i, bias + i, to + i, std::min(kBlock, count - i));
          }
        }
      }
    }
  }

  const GroupedMlpArgs<T>& args_;
  const GroupedMlp& size_;
  const int64_t x_columns_, hidden_columns_;  // with their zeros
  Token* hidden_ = nullptr;                   // a wave's hidden values
};

}  // namespace
}  // namespace capmoe::cpu
