// The grouped MLP: which instruction set, and what all of them share.
#include "grouped_mlp.h"

#include <algorithm>
#include <cstdint>
#include <new>
#include <type_traits>

#include "isa.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace capmoe::cpu {

std::vector<RowBlock> row_blocks(const int32_t* expert_offsets, const int32_t* tokens_per_expert, int64_t begin,
                                 int64_t end, int64_t max_rows, int64_t tile_rows) {
  std::vector<RowBlock> blocks;
  int64_t tile = 0;
  for (int64_t expert = begin; expert < end; ++expert) {
    const int64_t rows = tokens_per_expert[expert];
    // Even blocks: a last block of few rows would read the weights for little.
    const int64_t even = round_up(ceil_div(rows, std::max<int64_t>(ceil_div(rows, max_rows), 1)), tile_rows);
    const int64_t step = std::min(even, max_rows);
    for (int64_t first = 0; first < rows; first += step) {
      blocks.push_back(
          {expert, expert_offsets[expert] + first, std::min(step, rows - first), tile + first / tile_rows});
    }
    tile += ceil_div(rows, tile_rows);
  }
  return blocks;
}

constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kLarge = 16 << 20;

void wish_for_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = round_up(begin, kHugePage), last = (begin + bytes) / kHugePage * kHugePage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // may fail: only a wish
#else
  (void)data, (void)bytes;
#endif
}

namespace {

// Buffers that a thread has given back, for its next call: fresh memory costs a fault and a clearing for every page.
class Kept {
 public:
  ~Kept() {
    for (const Memory& memory : list_) release(memory);
  }

  // The smallest that is large enough, but not a waste; or fresh memory.
  Memory take(int64_t bytes) {
    auto best = list_.end();
    for (auto it = list_.begin(); it != list_.end(); ++it) {
      const bool fits = it->bytes >= bytes && it->bytes <= 2 * bytes;
      if (fits && (best == list_.end() || it->bytes < best->bytes)) best = it;
    }
    if (best == list_.end()) return allocate(bytes);
    const Memory memory = *best;
    list_.erase(best);
    total_ -= memory.bytes;
    return memory;
  }

  void give(const Memory& memory) {
    if (memory.bytes > kKeptBytes) return release(memory);
    list_.push_back(memory);
    total_ += memory.bytes;
    while (total_ > kKeptBytes) {  // the oldest first
      total_ -= list_.front().bytes;
      release(list_.front());
      list_.erase(list_.begin());
    }
  }

 private:
  static constexpr int64_t kKeptBytes = 32 << 20;  // of a thread: a wave and a panel

  static int64_t alignment(int64_t bytes) { return bytes < 2 * kHugePage ? 64 : kHugePage; }

  static Memory allocate(int64_t bytes) {
    void* data = ::operator new(bytes, std::align_val_t(alignment(bytes)));
    if (alignment(bytes) == kHugePage) wish_for_huge_pages(data, bytes);
    return {data, bytes};
  }

  static void release(const Memory& memory) {
    ::operator delete(memory.data, std::align_val_t(alignment(memory.bytes)));
  }

  std::vector<Memory> list_;
  int64_t total_ = 0;
};

thread_local Kept kept;

}  // namespace

Buffer::Buffer(int64_t bytes) : memory_(kept.take(bytes)) {}

Buffer::~Buffer() { kept.give(memory_); }

template <class T>
void grouped_mlp(const T* x, const int32_t* row_tokens, const T* gate_up_proj, const T* gate_up_bias,
                 const T* down_proj, const T* down_bias, const int32_t* expert_offsets,
                 const int32_t* tokens_per_expert, const GroupedMlp& config, T* y, const ParallelFor& parallel_for) {
  const Isa isa = chosen_isa();
  const int64_t row_bytes = config.hidden * static_cast<int64_t>(sizeof(T));
  int64_t rows = 0;
  for (int64_t e = 0; e < config.num_experts; ++e) {
    rows = std::max<int64_t>(rows, int64_t{expert_offsets[e]} + tokens_per_expert[e]);
  }
  const int64_t y_bytes = rows * row_bytes;
  wish_for_huge_pages(y, y_bytes);
  const bool whole_lines = row_bytes % 64 == 0 && reinterpret_cast<uintptr_t>(y) % 64 == 0;
  const GroupedMlpArgs<T> args{x,
                               row_tokens,
                               gate_up_proj,
                               gate_up_bias,
                               down_proj,
                               down_bias,
                               expert_offsets,
                               tokens_per_expert,
                               config,
                               y,
                               whole_lines && y_bytes > kLarge,
                               &parallel_for};
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (isa == Isa::amx) return grouped_mlp_amx(args);
    if (isa == Isa::avx512_bf16) return grouped_mlp_avx512_bf16(args);
  }
  if (isa >= Isa::avx512) return grouped_mlp_avx512(args);
  if (isa == Isa::avx2) return grouped_mlp_avx2(args);
#endif
  grouped_mlp_scalar(args);
}

template void grouped_mlp(const float*, const int32_t*, const float*, const float*, const float*, const float*,
                          const int32_t*, const int32_t*, const GroupedMlp&, float*, const ParallelFor&);
template void grouped_mlp(const BFloat16*, const int32_t*, const BFloat16*, const BFloat16*, const BFloat16*,
                          const BFloat16*, const int32_t*, const int32_t*, const GroupedMlp&, BFloat16*,
                          const ParallelFor&);
template void grouped_mlp(const Half*, const int32_t*, const Half*, const Half*, const Half*, const Half*,
                          const int32_t*, const int32_t*, const GroupedMlp&, Half*, const ParallelFor&);

}  // namespace capmoe::cpu
