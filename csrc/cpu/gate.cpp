// Scores, top-k and extra candidates. The semantics are those of reference/gate.py.
#include "gate.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "isa.h"

namespace capmoe::cpu {
namespace {

// A batch's rows stay in the nearest cache.
constexpr int64_t kBatchTokens = 16, kBatchValues = 2048;

constexpr int64_t kFewestLanes = 4;  // of a vector of any instruction set

struct alignas(64) Line {
  char bytes[64];
};

int64_t padded(int64_t count) { return (count + kGatePadding - 1) / kGatePadding * kGatePadding; }

// What a thread needs for its tokens.
class Scratch {
 public:
  Scratch(const Gate& config, int64_t tokens) {
    GateBatch& b = batch_;
    b.stride = padded(config.num_experts);
    b.maxima_stride = padded(b.stride / kFewestLanes);
    b.tokens = std::max<int64_t>(std::min({tokens, kBatchTokens, kBatchValues / b.stride}), 1);
    layout(config);
    memory_ = std::make_unique<Line[]>(bytes_ / sizeof(Line));
    layout(config);
    std::fill_n(b.logits, b.tokens * b.stride, kForbidden);
  }

  const GateBatch& batch() const { return batch_; }

 private:
  // Measures the memory, or, where it's there, cuts it.
  void layout(const Gate& config) {
    GateBatch& b = batch_;
    bytes_ = 0;
    take(b.logits, b.tokens * b.stride);
    take(b.scores, b.tokens * b.stride);
    take(b.keys, b.tokens * b.stride);
    take(b.maxima, b.tokens * b.maxima_stride);
    take(b.divisor, b.tokens);
    take(b.found, b.tokens);
    take(b.ids, b.tokens * config.columns);
    take(b.chosen, b.tokens * config.columns);
    take(b.divide, b.tokens * config.columns);
    take(b.groups, config.num_groups);
  }

  template <class P>
  void take(P*& piece, int64_t count) {
    if (memory_) piece = reinterpret_cast<P*>(memory_[0].bytes + bytes_);
    bytes_ += padded(count) * static_cast<int64_t>(sizeof(P));
  }

  GateBatch batch_{};
  std::unique_ptr<Line[]> memory_;
  int64_t bytes_ = 0;
};

template <class T>
void gate_isa(const GateArgs<T>& args, const GateBatch& batch, int64_t begin, int64_t end) {
  const Isa isa = chosen_isa();
#if defined(__x86_64__)
  if (isa >= Isa::avx512) return gate_avx512(args, batch, begin, end);
  if (isa == Isa::avx2) return gate_avx2(args, batch, begin, end);
#endif
  (void)isa;
  gate_scalar(args, batch, begin, end);
}

}  // namespace

template <class T>
void gate(const T* logits, const float* bias, const Gate& config, int32_t* expert_ids, float* weights, float* scores,
          const ParallelFor& parallel_for) {
  std::vector<float> padded_bias;
  if (bias != nullptr) {
    padded_bias.assign(padded(config.num_experts), 0.0f);
    std::copy_n(bias, config.num_experts, padded_bias.begin());
    bias = padded_bias.data();
  }
  const GateArgs<T> args{logits, bias, config, expert_ids, weights, scores};
  chosen_isa();  // an unknown name is an error here, not in a thread
  parallel_for(config.tokens, [&](int64_t begin, int64_t end) {
    const Scratch scratch(config, end - begin);
    gate_isa(args, scratch.batch(), begin, end);
  });
}

template void gate(const float*, const float*, const Gate&, int32_t*, float*, float*, const ParallelFor&);
template void gate(const BFloat16*, const float*, const Gate&, int32_t*, float*, float*, const ParallelFor&);
template void gate(const Half*, const float*, const Gate&, int32_t*, float*, float*, const ParallelFor&);

}  // namespace capmoe::cpu
