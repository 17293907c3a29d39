// One allocation for everything that lives as long as a call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../cuda/kernels.h"
#include "tensor.h"

#ifdef CAPMOE_EMULATED
extern "C" void standin_add_piece(const void* piece, uint64_t bytes);
#endif

namespace capmoe {

// Cuts pieces off a block of memory, or, where there is none yet, finds out how large it must be.
class Carver {
 public:
  explicit Carver(std::byte* memory = nullptr) : memory_(memory) {}

  template <class T>
  T* take(int64_t count) {
    std::byte* piece = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += (static_cast<int64_t>(sizeof(T)) * count + kAlignment - 1) / kAlignment * kAlignment;
#ifdef CAPMOE_EMULATED  // each piece is exact, and nobody's memory lies between two
    if (memory_ != nullptr) standin_add_piece(piece, sizeof(T) * count);
    bytes_ += kAlignment;
#endif
    return reinterpret_cast<T*>(piece);
  }

  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kAlignment = 256;  // of torch's allocations, at least; 16 would do for any kernel
  std::byte* memory_;
  int64_t bytes_ = 0;
};

// `Pieces` is made from a Carver and a few numbers: once to measure, once on the memory itself.
template <class Pieces>
struct Workspace {
  template <class... Sizes>
  explicit Workspace(const Tensor& like, const Sizes&... sizes)
      : memory(new_tensor(like, {bytes(sizes...)}, ScalarType::Byte)), pieces(on(memory, sizes...)) {}

  Tensor memory;
  Pieces pieces;

 private:
  template <class... Sizes>
  static int64_t bytes(const Sizes&... sizes) {
    Carver carver;
    Pieces(carver, sizes...);
    return carver.bytes();
  }

  template <class... Sizes>
  static Pieces on(const Tensor& memory, const Sizes&... sizes) {
    Carver carver(write<std::byte>(memory));
    return Pieces(carver, sizes...);
  }
};

// What select needs beside its inputs and outputs.
struct SelectScratch {
  cuda::Marks marks;
  std::byte* scratch;

  // `repeats`: the ids are a caller's own. `cards`: as of cuda::uses_cards().
  SelectScratch(Carver& carver, const Select& config, bool repeats, bool cards) {
    const int64_t words = (config.tokens + 31) / 32;
    // Scores decide who stays only under a bound that binds.
    const bool ranked = config.policy == Policy::score && capacity_of(config, config.tokens) < config.tokens;
    marks.asks = cards ? nullptr : carver.take<uint32_t>(config.num_experts * words);
    marks.top = config.columns == config.top_k ? nullptr : carver.take<uint32_t>(config.num_experts * words);
    marks.keys = ranked && !cards ? carver.take<uint32_t>(config.num_experts * config.tokens) : nullptr;
    marks.cards = cards ? carver.take<uint32_t>(config.num_experts * words * cuda::kCardWords) : nullptr;
    marks.counters = carver.take<uint32_t>(cuda::kSelectCounters);
    marks.repeats = repeats;
    scratch = carver.take<std::byte>(static_cast<int64_t>(cuda::select_scratch(config)));
  }
};

// The gate's answers, of T tokens and K columns.
struct Candidates {
  int32_t* expert_ids;
  float *weights, *scores;  // the latter null where nobody reads them

  Candidates(Carver& carver, const Gate& config, bool scored)
      : expert_ids(carver.take<int32_t>(config.tokens * config.columns)),
        weights(carver.take<float>(config.tokens * config.columns)),
        scores(scored ? carver.take<float>(config.tokens * config.columns) : nullptr) {}
};

// Everything between the layer's inputs and its output.
template <class T>
struct Layer {
  Candidates candidates;
  Selection selection;
  SelectScratch select;
  T *hidden_rows, *y;  // [N, F], [N, H]

  Layer(Carver& carver, const Gate& gate, const Select& config, const GroupedMlp& mlp, bool cards)
      : candidates(carver, gate, cuda::reads_scores(config)),
        selection(take_selection(carver, config)),
        select(carver, config, false, cards) {
    hidden_rows = carver.take<T>(config.rows * mlp.intermediate);
    y = carver.take<T>(config.rows * mlp.hidden);
  }

 private:
  static Selection take_selection(Carver& carver, const Select& config) {
    const int64_t pairs = config.tokens * config.columns;
    Selection out{};
    out.expert_ids = carver.take<int32_t>(pairs);
    out.weights = carver.take<float>(pairs);
    out.rows = carver.take<int32_t>(pairs);
    out.row_tokens = carver.take<int32_t>(config.rows);
    out.expert_offsets = carver.take<int32_t>(config.num_experts + 1);
    out.tokens_per_expert = carver.take<int32_t>(config.num_experts);
    out.demand_per_expert = carver.take<int32_t>(config.num_experts);
    return out;
  }
};

}  // namespace capmoe
