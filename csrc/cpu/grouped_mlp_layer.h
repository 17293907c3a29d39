// The grouped MLP as blocks of a matrix product, for any instruction set.
//
// Both products are computed transposed, C^T = W x^T: the weights are read where they lie, and sixteen tokens fill
// the lanes of a vector or the columns of a tile. So a row's sum runs over k in one order, whatever its neighbours
// are and however many rows its expert has, and the hidden values come out in the layout that the second product
// reads.
//
// A Path says how an instruction set does it: Scalar, the type of x, weights and y; Weight, what the kernel multiplies
// with; Panel, what the tokens are packed to; kHalf, kGroups, the block: two halves of kHalf weight rows by kGroups
// groups of tokens; kPair, how many neighbours in k lie together; kStep, what k is padded to; kBlockK, kPanelBytes,
// the cache block; kChunk and chunk(tokens), how many blocks of weights share a tile of tokens; kSumK, what a sum is
// built of, which divides kBlockK; kFew, up to how many tokens of a tile have their sums as [token, row], kGroup apart,
// rather than as [row, kTokens], and panels of only 1, 2, 4 or 8 lanes; and the functions used below.
//
// A panel holds, for each group, Panel[k / kPair][kGroup][kPair]. Include inside the target region of one file.
#pragma once

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "grouped_mlp.h"
#include "simd.h"

namespace capmoe::cpu {
namespace {

// An expert's weights. A unit is what the block counts: a row, or the gate row and the up row of one hidden value.
template <class T>
struct Matrix {
  const T* data;
  int64_t k;
  int64_t unit_stride;
  int64_t up_offset;  // from a unit's gate row to its up row; 0 where a unit is one row
};

// What a kernel reads of `half` weight rows of each half-block: whole steps of k in place, the rest zero-padded.
template <class W>
struct WeightRows {
  const W* a;
  const W* b;
  int64_t stride;   // from a row to the next
  int64_t step;     // from kStep columns to the next
  int64_t next;     // from a row to the one that the next block has in its place
  const W* tail_a;  // [half, kStep]
  const W* tail_b;
  // Of copied rows: where what will be copied next lies, for the kernel to ask for meanwhile, a row of each half for
  // every group of tokens.
  const char* next_a = nullptr;
  const char* next_b = nullptr;
  int64_t next_stride = 0, next_step = 0, next_rows = 0;  // the first two in bytes

  void next_row() {
    if (--next_rows <= 0) next_stride = next_step = 0;
    next_a += next_stride;
    next_b += next_stride;
  }
};

template <class Path>
class Layer {
 public:
  using T = typename Path::Scalar;
  using Panel = typename Path::Panel;
  static constexpr int64_t kTokens = Path::kGroups * kGroup;
  static constexpr int64_t kTile = 2 * Path::kHalf * kTokens;
  static constexpr int64_t kWaveBytes = 16 << 20;
  static constexpr int64_t kMaxUnits = 256 / (2 * Path::kHalf) * (2 * Path::kHalf);  // in one task

  explicit Layer(const GroupedMlpArgs<T>& args)
      : args_(args), size_(args.config), hidden_stride_(round_up(size_.intermediate, Path::kStep) * kGroup) {}

  void run() {
    const Buffer hidden(max_wave_groups() * hidden_stride_ * sizeof(Panel));
    hidden_ = hidden.as<Panel>();
    for (int64_t begin = 0, end; begin < size_.num_experts; begin = end) {
      end = wave_end(begin);
      for_tasks(blocks(begin, end, size_.hidden), size_.intermediate, size_.hidden,
                [&](Scratch& scratch, const RowBlock& block, int64_t first, int64_t last) {
                  gate_up(scratch, block, first, last);
                });
      for_tasks(blocks(begin, end, size_.intermediate), size_.hidden, size_.intermediate,
                [&](Scratch& scratch, const RowBlock& block, int64_t first, int64_t last) {
                  down(scratch, block, first, last);
                });
    }
  }

 private:
  // What one range of tasks keeps to itself.
  struct Scratch {
    Scratch(int64_t groups, int64_t k)
        : panel(groups * kGroup * round_up(std::min(k, Path::kBlockK), Path::kStep) * sizeof(Panel)),
          sums(sums_bytes(groups, k)),
          weights(Path::kChunk * Path::weight_scratch(std::min(k, Path::kSumK))) {
      // Kernels need not write the lanes of missing tokens, but the activation reads them.
      std::memset(sums.template as<float>(), 0, sums_bytes(groups, k));
    }
    static int64_t sums_bytes(int64_t groups, int64_t k) {
      const int64_t tiles = ceil_div(groups, Path::kGroups);
      return (k <= Path::kBlockK ? Path::kChunk : ceil_div(kMaxUnits, Path::kHalf)) * tiles * kTile * sizeof(float);
    }
    Buffer panel, sums, weights;
    const RowBlock* packed = nullptr;  // what `panel` holds
    int64_t packed_k = 0;
    typename Path::Session session;
  };

  int64_t groups_of(int64_t expert) const { return ceil_div(args_.tokens_per_expert[expert], kGroup); }

  // A wave of experts goes through both products before the next: its hidden values stay near, in memory that is
  // used again rather than asked of the system.
  int64_t wave_end(int64_t begin) const {
    int64_t end = begin + 1, groups = groups_of(begin);
    for (; end < size_.num_experts; ++end) {
      groups += groups_of(end);
      if (groups * hidden_stride_ * static_cast<int64_t>(sizeof(Panel)) > kWaveBytes) break;
    }
    return end;
  }

  int64_t max_wave_groups() const {
    int64_t most = 0;
    for (int64_t begin = 0, end; begin < size_.num_experts; begin = end) {
      end = wave_end(begin);
      int64_t groups = 0;
      for (int64_t expert = begin; expert < end; ++expert) groups += groups_of(expert);
      most = std::max(most, groups);
    }
    return most;
  }

  std::vector<RowBlock> blocks(int64_t first_expert, int64_t last_expert, int64_t k) const {
    const int64_t row_bytes = std::min(k, Path::kBlockK) * sizeof(Panel);
    const int64_t rows = std::clamp<int64_t>(Path::kPanelBytes / row_bytes / kTokens, 1, 1024 / kTokens) * kTokens;
    return row_blocks(args_.expert_offsets, args_.tokens_per_expert, first_expert, last_expert, rows);
  }

  // Calls task(scratch, block, begin, end) for every block of rows and every piece of `units`. Pieces are small, for
  // the load to spread where experts are few; neighbours in a range share the packed rows.
  template <class Task>
  void for_tasks(const std::vector<RowBlock>& blocks, int64_t units, int64_t k, const Task& task) const {
    const int64_t piece = k <= Path::kBlockK ? kMaxUnits / 2 : kMaxUnits;
    const int64_t pieces = ceil_div(units, piece);
    int64_t max_rows = 0;
    for (const RowBlock& block : blocks) max_rows = std::max(max_rows, block.rows);
    (*args_.parallel_for)(blocks.size() * pieces, [&](int64_t begin, int64_t end) {
      Scratch scratch(ceil_div(max_rows, kGroup), k);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % pieces * piece;
        task(scratch, blocks[i / pieces], first, std::min(first + piece, units));
      }
    });
  }

  void gate_up(Scratch& scratch, const RowBlock& block, int64_t begin, int64_t end) const {
    const int64_t h = size_.hidden, f = size_.intermediate;
    const bool gated = size_.gated;
    const T* weights = args_.gate_up_proj + block.expert * (gated ? 2 : 1) * f * h;
    const Matrix<T> matrix{weights, h, gated && size_.interleaved ? 2 * h : h,
                           !gated ? 0 : (size_.interleaved ? h : f * h)};
    const auto panel = [&](int64_t k0, int64_t k1) {
      return PanelAt{pack(scratch, block, k0, k1), round_up(k1 - k0, Path::kStep) * kGroup, k0};
    };
    multiply(scratch, matrix, begin, end, block.rows, panel,
             [&](const float* sums, int64_t unit, int64_t units, int64_t group, int64_t groups) {
               store_hidden(sums, block, unit, units, group, groups);
             });
    if (end == size_.intermediate) pad_hidden(block);
  }

  void down(Scratch& scratch, const RowBlock& block, int64_t begin, int64_t end) const {
    const int64_t h = size_.hidden, f = size_.intermediate;
    const Matrix<T> matrix{args_.down_proj + block.expert * h * f, f, f, 0};
    const Panel* hidden = hidden_ + block.group * hidden_stride_;
    const auto panel = [&](int64_t, int64_t) { return PanelAt{hidden, hidden_stride_, 0}; };
    multiply(scratch, matrix, begin, end, block.rows, panel,
             [&](const float* sums, int64_t unit, int64_t units, int64_t group, int64_t groups) {
               store_y(sums, block, unit, units, group, groups);
             });
  }

  struct PanelAt {
    const Panel* data;
    int64_t stride;   // from a group to the next
    int64_t first_k;  // what it begins with
  };

  // Tokens that lie together in a panel, of a tile of so many.
  static int64_t lanes_of(int64_t tokens) {
    if (tokens > Path::kFew) return kGroup;
    return tokens <= 2 ? tokens : tokens <= 4 ? 4 : 8;
  }

  // Some units that the kernel takes at once, and where their sums go.
  struct Step {
    int64_t unit, units, half, first_b;  // first_b: of the sums, where the second half's rows begin
    const T *a, *b;
    float* sums;
    decltype(Path::prepare(nullptr, nullptr, 0, 0, 0, 0, 0, nullptr)) rows;
  };

  // Sums of units [begin, end) over all k for all rows of a block, handed to `store` tile by tile: sums
  // [rows, kTokens], where gated the units' gate rows, then their up rows.
  template <class Panels, class Store>
  void multiply(Scratch& scratch, const Matrix<T>& matrix, int64_t begin, int64_t end, int64_t tokens,
                const Panels& panel_of, const Store& store) const {
    const int64_t step = matrix.up_offset != 0 ? Path::kHalf : 2 * Path::kHalf;
    const int64_t chunk = Path::chunk(tokens) * step, at_once = Path::columns_at_once(tokens);
    const bool once = matrix.k <= Path::kBlockK;  // one block of k: each unit's sums are stored at once
    Step steps[Path::kChunk];
    for (int64_t k0 = 0; k0 < matrix.k; k0 += Path::kBlockK) {
      const int64_t k1 = std::min(k0 + Path::kBlockK, matrix.k);
      const PanelAt panel = panel_of(k0, k1);
      float* sums = scratch.sums.template as<float>();
      for (int64_t unit = begin; unit < end; unit += chunk) {
        const int64_t last = std::min(unit + chunk, end), count = ceil_div(last - unit, step);
        for (int64_t i = 0; i < count; ++i) {
          steps[i] = step_of(matrix, unit + i * step, last, sums);
          sums += ceil_div(tokens, kTokens) * kTile;
        }
        // All tokens use a piece of the weights, and all the chunk's weights a tile's tokens, while it is near.
        for (int64_t k = k0; k < k1; k += at_once) {
          const int64_t count_k = std::min(at_once, k1 - k);
          const int64_t next = k + count_k < k1 ? count_k : chunk * matrix.unit_stride + k0 - k;
          char* weights = scratch.weights.template as<char>();
          for (int64_t i = 0; i < count; ++i, weights += Path::weight_scratch(count_k)) {
            Step& s = steps[i];
            s.rows = Path::prepare(s.a + k, s.b + k, matrix.unit_stride, s.half, count_k, next, tokens, weights);
          }
          for (int64_t first = 0; first < tokens; first += kTokens) {
            const int64_t here = std::min(kTokens, tokens - first);
            const Panel* tile = panel.data + first / kGroup * panel.stride + (k - panel.first_k) * lanes_of(here);
            multiply_tile(steps, count, tile, panel.stride, first, here, k, count_k, matrix.k, store);
          }
        }
        if (once) sums = scratch.sums.template as<float>();
      }
    }
  }

  static Step step_of(const Matrix<T>& matrix, int64_t unit, int64_t end, float* sums) {
    const bool pairs = matrix.up_offset != 0;
    const int64_t units = std::min<int64_t>(pairs ? Path::kHalf : 2 * Path::kHalf, end - unit);
    // Of an odd number of rows the halves share the middle one.
    const int64_t half = pairs ? units : (units + 1) / 2;
    const T* a = matrix.data + unit * matrix.unit_stride;
    const T* b = pairs ? a + matrix.up_offset : a + (units - half) * matrix.unit_stride;
    return {unit, units, half, pairs ? half : units - half, a, b, sums, {}};
  }

  template <class Store>
  static void multiply_tile(Step* steps, int64_t count, const Panel* panel, int64_t stride, int64_t first,
                            int64_t tokens, int64_t k, int64_t count_k, int64_t whole_k, const Store& store) {
    for (int64_t i = 0; i < count; ++i) {
      Step& s = steps[i];
      float* tile = s.sums + first / kTokens * kTile;
      Path::multiply(s.rows, s.half, panel, stride, tokens, count_k, tile, tile + s.first_b * kTokens, k > 0);
      s.rows.next_row();
      if (k + count_k == whole_k) store(tile, s.unit, s.units, first / kGroup, ceil_div(tokens, kGroup));
    }
  }

  // Columns [k0, k1) of a block's rows as a panel.
  const Panel* pack(Scratch& scratch, const RowBlock& block, int64_t k0, int64_t k1) const {
    Panel* panel = scratch.panel.template as<Panel>();
    if (scratch.packed == &block && scratch.packed_k == k0) return panel;
    scratch.packed = &block;
    scratch.packed_k = k0;
    const int64_t stride = round_up(k1 - k0, Path::kStep) * kGroup;
    for (int64_t first = 0; first < block.rows; first += kGroup) {
      const T* rows[kGroup] = {};
      for (int64_t i = first; i < std::min(first + kGroup, block.rows); ++i) {
        const int64_t row = args_.row_tokens ? args_.row_tokens[block.row + i] : block.row + i;
        rows[i - first] = args_.x + row * size_.hidden + k0;
      }
      const int64_t lanes = lanes_of(block.rows - first / kTokens * kTokens);
      Path::pack(rows, lanes, k1 - k0, panel + first / kGroup * stride);
    }
    return panel;
  }

  void store_hidden(const float* sums, const RowBlock& block, int64_t unit, int64_t units, int64_t group,
                    int64_t groups) const {
    with_activation(size_.activation, [&](auto activation) {
      if constexpr (Path::kFew > 0) {
        const int64_t tokens = block.rows - group * kGroup;
        if (tokens <= Path::kFew) return store_few_hidden(activation, sums, block, unit, units, group, tokens);
      }
      for (int64_t g = 0; g < groups; ++g) {
        Panel* out = hidden_ + (block.group + group + g) * hidden_stride_ + unit * kGroup;
        for (int64_t i = 0; i < units; i += Path::kPair) {
          Vec values[Path::kPair][kGroup / kLanes] = {};
          for (int64_t j = 0; j < std::min<int64_t>(Path::kPair, units - i); ++j) {
            activate(activation, sums + g * kGroup, block.expert, unit, units, i + j, values[j]);
          }
          Path::store_hidden(values, out + i * kGroup);
        }
      }
    });
  }

  // The same for a tile of few tokens, whose sums are [token, row]: the units fill a vector's lanes.
  template <class Act>
  void store_few_hidden(Act, const float* sums, const RowBlock& block, int64_t unit, int64_t units, int64_t group,
                        int64_t tokens) const {
    alignas(64) float first_bias[kGroup] = {}, up_bias[kGroup] = {}, values[kGroup];
    for (int64_t i = 0; i < units && args_.gate_up_bias != nullptr; ++i) {
      std::tie(first_bias[i], up_bias[i]) = biases(block.expert, unit + i);
    }
    const int64_t lanes = lanes_of(tokens);
    Panel* out = hidden_ + (block.group + group) * hidden_stride_ + unit * lanes;
    std::fill_n(out, units * lanes, Panel{});
    for (int64_t t = 0; t < tokens; ++t, sums += kGroup) {
      for (int64_t part = 0; part < kGroup; part += kLanes) {
        const Vec first = load(sums + part) + load(first_bias + part);
        if (size_.gated) {
          store(values + part, Act::gated(first, load(sums + units + part) + load(up_bias + part)));
        } else {
          store(values + part, Act::plain(first));
        }
      }
      for (int64_t i = 0; i < units; ++i) out[i * lanes + t] = values[i];
    }
  }

  // Of one hidden value: what is added to its gate, or only, sum and to its up sum.
  std::pair<float, float> biases(int64_t expert, int64_t unit) const {
    if (args_.gate_up_bias == nullptr) return {0.0f, 0.0f};
    const int64_t f = size_.intermediate;
    const T* bias = args_.gate_up_bias + expert * (size_.gated ? 2 * f : f);
    if (!size_.gated) return {to_float(bias[unit]), 0.0f};
    const int64_t first = size_.interleaved ? 2 * unit : unit;
    return {to_float(bias[first]), to_float(bias[size_.interleaved ? first + 1 : f + unit])};
  }

  template <class Act>
  void activate(Act, const float* sums, int64_t expert, int64_t unit, int64_t units, int64_t i,
                Vec out[kGroup / kLanes]) const {
    const auto [first_bias, up_bias] = biases(expert, unit + i);
    for (int part = 0; part < kGroup / kLanes; ++part) {
      const Vec first = load(sums + i * kTokens + part * kLanes) + first_bias;
      if (size_.gated) {
        out[part] = Act::gated(first, load(sums + (units + i) * kTokens + part * kLanes) + up_bias);
      } else {
        out[part] = Act::plain(first);
      }
    }
  }

  // Zeros between F and the padded F, which the second product multiplies with its padded weights.
  void pad_hidden(const RowBlock& block) const {
    const int64_t used = round_up(size_.intermediate, Path::kPair) * kGroup;
    for (int64_t g = 0; g < ceil_div(block.rows, kGroup); ++g) {
      Panel* group = hidden_ + (block.group + g) * hidden_stride_;
      std::memset(group + used, 0, (hidden_stride_ - used) * sizeof(Panel));
    }
  }

  void store_y(const float* sums, const RowBlock& block, int64_t column, int64_t columns, int64_t group,
               int64_t groups) const {
    for (int64_t i = 0; i < columns; i += kGroup) {
      const int64_t count = std::min(kGroup, columns - i);
      const int64_t first = column + i;
      alignas(64) float bias[kGroup] = {};
      if (args_.down_bias) to_floats(args_.down_bias + block.expert * size_.hidden + first, bias, count);
      const int64_t few = block.rows - group * kGroup;
      if (few <= Path::kFew) {
        T* y = args_.y + (block.row + group * kGroup) * size_.hidden + first;
        for (int64_t t = 0; t < few; ++t) store_row(sums + t * kGroup, bias, y + t * size_.hidden, count);
        continue;
      }
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t row = (group + g) * kGroup;
        T* y = args_.y + (block.row + row) * size_.hidden + first;
        alignas(64) float tile[kGroup * kGroup];
        transpose(sums + i * kTokens + g * kGroup, kTokens, count, tile);
        for (int64_t t = 0; t < std::min(kGroup, block.rows - row); ++t) {
          store_row(tile + t * kGroup, bias, y + t * size_.hidden, count);
        }
      }
    }
  }

  const GroupedMlpArgs<T>& args_;
  const GroupedMlp& size_;
  const int64_t hidden_stride_;  // of a group
  Panel* hidden_ = nullptr;      // a wave's hidden values as one panel
};

}  // namespace
}  // namespace capmoe::cpu
