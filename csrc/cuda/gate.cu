// Scores, top-k and extra candidates, and for select who asks for whom: one launch.
//
// A block has 32 consecutive tokens, so it owns a word of every expert's bit row.
#include <algorithm>

#include "gate_row.cuh"
#include "gate_wide.cuh"
#include "kernels.h"

namespace capmoe::cuda {
namespace {

constexpr int kBlockTokens = 32;
constexpr int kMaxWarps = 16;
// Keys of more local experts than fit here are not gathered into whole sectors before they are written.
constexpr int64_t kMaxSharedBytes = kCommonSharedBytes;

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

// The block's marks in shared memory, and where they go. Indices fit 32 bits: see gate().
struct BlockMarks {
  const Marks& to;
  int tokens, experts, local_start, local_stop;
  uint32_t* asks;  // [E]
  uint32_t* top;   // [E]
  uint32_t* keys;  // [local experts][33], so that a column of it has no bank conflict; null: not gathered

  __device__ __forceinline__ void clear() const {
    const int words = to.top == nullptr ? experts : 2 * experts;
#pragma unroll 1
    for (int i = threadIdx.x; i < words; i += blockDim.x) asks[i] = 0;
    __syncthreads();
  }

  // That a token, `bit` of the block's, asks for an expert.
  __device__ __forceinline__ void add(int bit, bool is_top, int expert, float score) const {
    atomicOr(asks + expert, 1u << bit);
    if (to.top != nullptr && is_top) atomicOr(top + expert, 1u << bit);
    if (to.keys == nullptr) return;
    const uint32_t key = __float_as_uint(score) | 0x80000000u;  // order_key() of a number that is not negative
    if (keys != nullptr && expert >= local_start && expert < local_stop) {
      keys[(expert - local_start) * (kBlockTokens + 1) + bit] = key;
    } else {
      to.keys[static_cast<uint32_t>(expert) * tokens + blockIdx.x * kBlockTokens + bit] = key;
    }
  }

  // Whole words of every expert, and the keys that were gathered, an expert's 32 tokens at a time.
  __device__ __forceinline__ void write() const {
    clear_counters(to);
    __syncthreads();
    const uint32_t words = (tokens + kBlockTokens - 1) / kBlockTokens;
#pragma unroll 1
    for (int e = threadIdx.x; e < experts; e += blockDim.x) {
      to.asks[e * words + blockIdx.x] = asks[e];
      if (to.top != nullptr) to.top[e * words + blockIdx.x] = top[e];
    }
    if (keys == nullptr) return;
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int e = local_start + threadIdx.x / 32; e < local_stop; e += blockDim.x / 32) {
      if ((asks[e] >> lane & 1) == 0) continue;
      const uint32_t key = keys[(e - local_start) * (kBlockTokens + 1) + lane];
      to.keys[static_cast<uint32_t>(e) * tokens + blockIdx.x * kBlockTokens + lane] = key;
    }
  }
};

// One column of one token, to global memory and to the block's marks.
struct WriteColumn {
  const Gate& config;
  const BlockMarks& block;
  int start;  // the first row's place in the block
  int32_t* expert_ids;
  float *weights, *scores;

  __device__ __forceinline__ void operator()(int row, int column, int expert, float weight, float score) const {
    const uint32_t token = blockIdx.x * kBlockTokens + start + row;
    const uint32_t at = token * static_cast<uint32_t>(config.columns) + column;
    expert_ids[at] = expert;
    weights[at] = weight;
    scores[at] = score;
    if (block.to.asks == nullptr || expert == block.experts) return;
    block.add(start + row, column < config.top_k, expert, score);
  }
};

template <class T, class Layout, bool kByScore>
__global__ __launch_bounds__(32 * kMaxWarps, Layout::kPerLane > 8 ? 1 : 2) void gate_kernel(
    const T* logits, const float* bias, const __grid_constant__ Gate config, int32_t* expert_ids, float* weights,
    float* scores, uint32_t* asks, uint32_t* top, uint32_t* keys, uint32_t* counters, int warp_bytes, bool gathers) {
  extern __shared__ uint4 shared[];
  char* memory = reinterpret_cast<char*>(shared);
  // Broadcast, so that the compiler sees that a warp stays together.
  const int warps = blockDim.x / 32, warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
  const int tokens = static_cast<int>(config.tokens), experts = static_cast<int>(config.num_experts);
  const Marks marks{asks, top, keys, counters, false};
  uint32_t* words = reinterpret_cast<uint32_t*>(memory + warps * warp_bytes);
  const BlockMarks block{marks,
                         tokens,
                         experts,
                         static_cast<int>(config.local_start),
                         static_cast<int>(config.local_stop),
                         words,
                         words + experts,
                         gathers ? words + 2 * experts : nullptr};
  if (asks != nullptr) block.clear();
  const int here = min(kBlockTokens, tokens - static_cast<int>(blockIdx.x) * kBlockTokens);
#pragma unroll 1
  for (int start = warp * Layout::kRows; start < here; start += warps * Layout::kRows) {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockTokens + start;
    const WriteColumn write{config, block, start, expert_ids, weights, scores};
    gate_rows<T, Layout, kByScore>(logits + first * experts, bias, config, min(Layout::kRows, here - start),
                                   memory + warp * warp_bytes, write);
  }
  if (asks != nullptr) block.write();
}

}  // namespace

template <class T>
void gate(const T* logits, const float* bias, const Gate& config, int32_t* expert_ids, float* weights, float* scores,
          const Marks* marks, cudaStream_t stream) {
  if (config.tokens == 0) return;
  const Marks to = marks == nullptr ? Marks{} : *marks;
  // Which also keeps tokens within 31 bits.
  if (config.tokens >= (int64_t{1} << 32) / std::max<int64_t>(config.num_experts, 2)) {
    throw std::invalid_argument("the gate takes fewer than 2**32 logits on CUDA");
  }
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
    limit_shared(kernel, kMaxSharedBytes, "gate");
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
