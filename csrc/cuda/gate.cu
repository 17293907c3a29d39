// Scores, top-k and extra candidates, and for select who asks for whom: one
// launch.
//
// A block has 32 consecutive tokens, so it owns a word of every expert's bit
// row.
#include <algorithm>

#include "gate_row.cuh"
#include "gate_wide.cuh"
#include "kernels.h"

namespace capmoe::cuda {
namespace {

constexpr int kBlockTokens = 32;
constexpr int kMaxWarps = 16;
// Keys of more local experts than fit here are not gathered into whole sectors
// before they are written.
constexpr int64_t kMaxSharedBytes = 96 * 1024;

// The block's marks in shared memory.
struct BlockMarks {
  uint32_t* asks;  // [E]
  uint32_t* top;   // [E]
  uint32_t* keys;  // [local experts][33], so that a column of it has no bank
                   // conflict; null: not gathered
};

template <class Layout>
struct Launch {
  int warps, warp_bytes;
  bool gathers;
  int64_t bytes;

  Launch(const Gate& config, const Marks& marks) {
    const auto tokens = static_cast<int>(std::min<int64_t>(config.tokens, kBlockTokens));
    warps = std::min(static_cast<int>(ceil_div(tokens, Layout::kRows)), kMaxWarps);
    warp_bytes = static_cast<int>(gate_scratch_bytes<Layout>(config));
    while (warps > 1 && warps * warp_bytes > kMaxSharedBytes) warps /= 2;
    bytes = static_cast<int64_t>(warps) * warp_bytes;
    if (marks.asks != nullptr) bytes += 2 * 4 * config.num_experts;
    const int64_t tile = (config.local_stop - config.local_start) * (kBlockTokens + 1) * 4;
    gathers = config.expand == Expand::local && marks.keys != nullptr && bytes + tile <= kMaxSharedBytes;
    if (gathers) bytes += tile;
  }
};

__device__ void clear_marks(const Gate& config, const BlockMarks& block) {
  for (int e = threadIdx.x; e < config.num_experts; e += blockDim.x) block.asks[e] = block.top[e] = 0;
  __syncthreads();
}

// Whole words of every expert, and the keys that were gathered, an expert's 32
// tokens at a time.
__device__ void write_marks(const Gate& config, const BlockMarks& block, const Marks& marks) {
  clear_counters(marks);
  __syncthreads();
  const int64_t words = ceil_div(config.tokens, kBlockTokens);
  for (int e = threadIdx.x; e < config.num_experts; e += blockDim.x) {
    marks.asks[e * words + blockIdx.x] = block.asks[e];
    if (marks.top != nullptr) marks.top[e * words + blockIdx.x] = block.top[e];
  }
  if (block.keys == nullptr) return;
  const int lane = threadIdx.x % 32, locals = static_cast<int>(config.local_stop - config.local_start);
  for (int i = threadIdx.x / 32; i < locals; i += blockDim.x / 32) {
    const int64_t e = config.local_start + i;
    if (block.asks[e] >> lane & 1) {
      marks.keys[e * config.tokens + blockIdx.x * kBlockTokens + lane] = block.keys[i * (kBlockTokens + 1) + lane];
    }
  }
}

// One column of one token, to global memory and to the block's marks.
struct WriteColumn {
  const Gate& config;
  const Marks& marks;
  const BlockMarks& block;
  int64_t first_token;  // of the warp's rows
  int32_t* expert_ids;
  float *weights, *scores;

  __device__ __forceinline__ void operator()(int row, int column, int expert, float weight, float score) const {
    const int64_t token = first_token + row, at = token * config.columns + column;
    expert_ids[at] = expert;
    weights[at] = weight;
    scores[at] = score;
    if (marks.asks == nullptr || expert == config.num_experts) return;
    const int bit = static_cast<int>(token % kBlockTokens);
    atomicOr(block.asks + expert, 1u << bit);
    if (marks.top != nullptr && column < config.top_k) atomicOr(block.top + expert, 1u << bit);
    if (marks.keys == nullptr) return;
    const int local = expert - static_cast<int>(config.local_start);
    if (block.keys != nullptr && local >= 0 && expert < config.local_stop) {
      block.keys[local * (kBlockTokens + 1) + bit] = order_key(score);
    } else {
      marks.keys[static_cast<uint64_t>(expert) * config.tokens + token] = order_key(score);
    }
  }
};

template <class T, class Layout, bool kByScore>
__global__ __launch_bounds__(32 * kMaxWarps) void gate_kernel(const T* logits, const float* bias,
                                                              const __grid_constant__ Gate config, int32_t* expert_ids,
                                                              float* weights, float* scores, uint32_t* asks,
                                                              uint32_t* top, uint32_t* keys, uint32_t* counters,
                                                              int warp_bytes, bool gathers) {
  const Marks marks{asks, top, keys, counters, false};
  extern __shared__ uint4 shared[];
  char* memory = reinterpret_cast<char*>(shared);
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  BlockMarks block;
  block.asks = reinterpret_cast<uint32_t*>(memory + warps * warp_bytes);
  block.top = block.asks + config.num_experts;
  block.keys = gathers ? block.top + config.num_experts : nullptr;
  if (marks.asks != nullptr) clear_marks(config, block);
  for (int start = warp * Layout::kRows; start < kBlockTokens; start += warps * Layout::kRows) {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockTokens + start;
    if (first >= config.tokens) break;
    const int rows = static_cast<int>(min(static_cast<int64_t>(Layout::kRows), config.tokens - first));
    const WriteColumn write{config, marks, block, first, expert_ids, weights, scores};
    gate_rows<T, Layout, kByScore>(logits + first * config.num_experts, bias, config, rows, memory + warp * warp_bytes,
                                   write);
  }
  if (marks.asks != nullptr) write_marks(config, block, marks);
}

}  // namespace

template <class T>
void gate(const T* logits, const float* bias, const Gate& config, int32_t* expert_ids, float* weights, float* scores,
          const Marks* marks, cudaStream_t stream) {
  if (config.tokens == 0) return;
  const Marks to = marks == nullptr ? Marks{} : *marks;
  if (config.num_experts > kMaxGateExperts) {
    return gate_wide(logits, bias, config, expert_ids, weights, scores, to, stream);
  }
  const auto blocks = static_cast<unsigned>(ceil_div(config.tokens, kBlockTokens));
  with_gate_layout(config, [&](auto layout) {
    using Layout = decltype(layout);
    const Launch<Layout> launch(config, to);
    const bool by_score = bias != nullptr || config.num_groups > 1;
    const auto kernel = by_score ? gate_kernel<T, Layout, true> : gate_kernel<T, Layout, false>;
    const int bytes = static_cast<int>(launch.bytes);
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "gate");
    kernel<<<blocks, 32 * launch.warps, bytes, stream>>>(logits, bias, config, expert_ids, weights, scores, to.asks,
                                                         to.top, to.keys, to.counters, launch.warp_bytes,
                                                         launch.gathers);
  });
  check_cuda(cudaGetLastError(), "gate");
}

template void gate(const float*, const float*, const Gate&, int32_t*, float*, float*, const Marks*, cudaStream_t);
template void gate(const __nv_bfloat16*, const float*, const Gate&, int32_t*, float*, float*, const Marks*,
                   cudaStream_t);
template void gate(const __half*, const float*, const Gate&, int32_t*, float*, float*, const Marks*, cudaStream_t);

}  // namespace capmoe::cuda
