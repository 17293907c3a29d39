// Who asks for whom, for a caller's own top-k: bits by expert, built in shared memory for a few words of tokens at
// once.
#include <algorithm>

#include "common.cuh"
#include "kernels.h"

namespace capmoe::cuda {
namespace {

constexpr int kThreads = 256;  // at most

// Where a block's marks are built: bits of [E][words] in asks and, of the first top_k columns, in top.
struct BlockMarks {
  uint32_t *asks, *top;
  int words;
};

// One pair, the first of its token and expert.
template <class Id>
__device__ __forceinline__ void mark_pair(const Select& config, const BlockMarks& block, const float* scores,
                                          uint32_t* keys, int first_token, int local, int column, Id id) {
  const int at = static_cast<int>(id) * block.words + local / 32;
  const uint32_t bit = 1u << (local % 32);
  atomicOr(&block.asks[at], bit);
  if (block.top != nullptr && column < config.top_k) atomicOr(&block.top[at], bit);
  if (keys == nullptr) return;
  const int64_t token = first_token + local;
  keys[int64_t{id} * config.tokens + token] = order_key(scores[token * config.columns + column]);
}

// A warp's lanes have all columns of a few tokens: equal ids are found by matching.
template <class Id>
__device__ void mark_few_columns(const Id* ids, const float* scores, const Select& config, const BlockMarks& block,
                                 uint32_t* keys, int first_token, int tokens) {
  const int columns = static_cast<int>(config.columns), at_once = 32 / columns;
  const int lane = threadIdx.x % 32, place = lane / columns, column = lane % columns;
  for (int start = threadIdx.x / 32 * at_once; start < tokens; start += blockDim.x / 32 * at_once) {
    const int local = start + place;
    const bool inside = place < at_once && local < tokens;
    const Id id = inside ? ids[(int64_t{first_token} + local) * columns + column] : -1;
    const bool valid = id >= 0 && id < config.num_experts;
    constexpr int kIdBits = 27;  // no array of marks holds as many experts
    const uint32_t own = valid ? static_cast<uint32_t>(id) | static_cast<uint32_t>(place) << kIdBits : ~0u;
    const uint32_t same = __match_any_sync(0xffffffffu, own);
    const bool first = (same & ((1u << lane) - 1)) == 0;
    if (valid && first) mark_pair(config, block, scores, keys, first_token, local, column, id);
  }
}

template <class Id>
__device__ void mark_many_columns(const Id* ids, const float* scores, const Select& config, const BlockMarks& block,
                                  uint32_t* keys, int first_token, int tokens) {
  const int columns = static_cast<int>(config.columns);
  for (int i = threadIdx.x; i < tokens * columns; i += blockDim.x) {
    const int local = i / columns, column = i % columns;
    const Id* row = ids + (int64_t{first_token} + local) * columns;
    const Id id = row[column];
    bool used = id >= 0 && id < config.num_experts;
    for (int j = 0; j < column && used; ++j) used = row[j] != id;
    if (used) mark_pair(config, block, scores, keys, first_token, local, column, id);
  }
}

// A block marks `words` words of tokens.
template <class Id>
__global__ void __launch_bounds__(kThreads)
    mark_kernel(const Id* ids, const float* scores, const __grid_constant__ Select config, uint32_t* asks,
                uint32_t* top, uint32_t* keys, uint32_t* counters, int words) {
  extern __shared__ uint32_t marks[];  // [E][words] of asks, then of top
  const int experts = static_cast<int>(config.num_experts), all_words = static_cast<int>((config.tokens + 31) / 32);
  const int first = blockIdx.x * words, here = min(words, all_words - first);
  const int tokens = static_cast<int>(min(config.tokens - int64_t{first} * 32, int64_t{words} * 32));
  const BlockMarks block{marks, top == nullptr ? nullptr : marks + experts * words, words};
  for (int i = threadIdx.x; i < experts * words * (top == nullptr ? 1 : 2); i += blockDim.x) marks[i] = 0;
  if (blockIdx.x == 0 && threadIdx.x < kSelectCounters) counters[threadIdx.x] = 0;
  __syncthreads();
  if (config.columns > 0 && config.columns <= 32) {
    mark_few_columns(ids, scores, config, block, keys, 32 * first, tokens);
  } else {
    mark_many_columns(ids, scores, config, block, keys, 32 * first, tokens);
  }
  __syncthreads();
  // Powers of two, so that the division is a shift.
  const int shift = 31 - __clz(words);
  for (int i = threadIdx.x; i < experts << shift; i += blockDim.x) {
    const int expert = i >> shift, word = i & (words - 1);
    if (word >= here) continue;
    const size_t to = size_t(expert) * all_words + first + word;
    asks[to] = marks[i];
    if (top != nullptr) top[to] = block.top[i];
  }
}

}  // namespace

template <class Id>
void mark(const Id* ids, const float* scores, const Select& config, const Marks& marks, cudaStream_t stream) {
  if (config.tokens == 0) return;
  const int64_t bytes_per_word = sizeof(uint32_t) * config.num_experts * (marks.top == nullptr ? 1 : 2);
  const int64_t all_words = ceil_div(config.tokens, 32);
  int words = 8;  // of an expert: a sector of memory
  while (words > 1 && (words * bytes_per_word > 48 * 1024 || words / 2 >= all_words)) words /= 2;
  const int64_t pairs = std::min(config.tokens, int64_t{32} * words) * config.columns;
  const int64_t warps = ceil_div(std::max(pairs, config.num_experts * words / 4), 32);
  const int threads = 32 * static_cast<int>(std::clamp<int64_t>(warps, 1, kThreads / 32));
  const size_t shared = static_cast<size_t>(words * bytes_per_word);
  if (shared > 48 * 1024) allow_all_shared(mark_kernel<Id>, shared, "select");
  const auto blocks = static_cast<unsigned>(ceil_div(all_words, words));
  mark_kernel<Id><<<blocks, threads, shared, stream>>>(ids, scores, config, marks.asks, marks.top, marks.keys,
                                                       marks.counters, words);
  check_cuda(cudaGetLastError(), "mark");
}

template void mark(const int32_t*, const float*, const Select&, const Marks&, cudaStream_t);
template void mark(const int64_t*, const float*, const Select&, const Marks&, cudaStream_t);

}  // namespace capmoe::cuda
