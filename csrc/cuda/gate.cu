// Scores, top-k and extra candidates, and for select who asks for whom: one launch.
//
// A block has 32 consecutive tokens.
#include <algorithm>

#include "gate_marks.cuh"
#include "gate_row.cuh"
#include "gate_two.cuh"
#include "gate_wide.cuh"
#include "kernels.h"
#include "select_problem.cuh"

namespace capmoe::cuda {
namespace {

constexpr int kMaxWarps = 16;
// Keys of more local experts than fit here are not gathered into whole sectors before they are written.
constexpr int64_t kMaxSharedBytes = kCommonSharedBytes;
constexpr int64_t kMaxCardColumns = 32;  // of which cards are not made

template <class Layout>
struct Launch {
  int warps, warp_bytes;
  bool gathers;
  int scratch_bytes;  // of all warps, and then of the tile of cards
  int64_t bytes;

  Launch(const Gate& config, const Marks& marks) {
    const auto tokens = static_cast<int>(std::min<int64_t>(config.tokens, kBlockTokens));
    warps = std::min(static_cast<int>(ceil_div(tokens, Layout::kRows)), kMaxWarps);
    warp_bytes = static_cast<int>(gate_scratch_bytes<Layout>(config));
    while (warps > 1 && warps * warp_bytes > kMaxSharedBytes) warps /= 2;
    const bool cards = marks.cards != nullptr;
    static_assert(4 * 8 * kTileWords <= 4 * 2 * 32 * 8);  // so that gate_two.cuh finds room in a warp's scratch
    bytes = std::max(int64_t{warps} * warp_bytes, cards ? 4 * kTileWords * config.num_experts : 0);
    scratch_bytes = static_cast<int>(bytes);
    if (marks.counters != nullptr) bytes += 2 * 4 * config.num_experts;
    if (cards) bytes += 8 * kBlockTokens * config.columns;
    const int64_t tile = (config.local_stop - config.local_start) * (kBlockTokens + 1) * 4;
    gathers = config.expand == Expand::local && marks.keys != nullptr && bytes + tile <= kMaxSharedBytes;
    if (gathers) bytes += tile;
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
    if (scores != nullptr) scores[at] = score;
    if (block.wanted()) block.add(start + row, column, column < static_cast<int>(config.top_k), expert, score);
  }
};

// The block's rows, shared out among its warps. `own`: the logits of the first; `bytes` of a warp's scratch.
template <class T, class Layout, bool kByScore>
__device__ __forceinline__ void gate_block(const T* own, const float* bias, const Gate& config, int here, char* memory,
                                           int bytes, const BlockMarks& block, int32_t* expert_ids, float* weights,
                                           float* scores) {
  // Broadcast, so that the compiler sees that a warp stays together.
  const int warps = blockDim.x / 32, warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
  if (block.wanted()) block.clear();
#pragma unroll 1
  for (int start = warp * Layout::kRows; start < here; start += warps * Layout::kRows) {
    const WriteColumn write{config, block, start, expert_ids, weights, scores};
    gate_rows<T, Layout, kByScore>(own + start * block.experts, bias, config, min(Layout::kRows, here - start),
                                   memory + warp * bytes, write);
  }
  if (block.wanted()) block.write(here);
}

template <class T, class Layout, bool kByScore>
__global__ __launch_bounds__(32 * kMaxWarps, Layout::kPerLane > 8 ? 1 : 2) void gate_kernel(
    const T* logits, const float* bias, const __grid_constant__ Gate config, int32_t* expert_ids, float* weights,
    float* scores, uint32_t* asks, uint32_t* top, uint32_t* keys, uint32_t* cards, uint32_t* counters, int warp_bytes,
    int scratch_bytes, bool gathers) {
  extern __shared__ uint4 shared[];
  char* memory = reinterpret_cast<char*>(shared);
  const int tokens = static_cast<int>(config.tokens), experts = static_cast<int>(config.num_experts);
  const int here = min(kBlockTokens, tokens - static_cast<int>(blockIdx.x) * kBlockTokens);
  const T* own = logits + blockIdx.x * kBlockTokens * static_cast<unsigned>(experts);  // within 32 bits: see gate()
  const Marks to{asks, top, keys, cards, counters, false};
  uint32_t* tile = reinterpret_cast<uint32_t*>(memory);
  if constexpr (Layout::kColumns == 2) {
    const WriteTwoColumns write{config, to, tile, expert_ids, weights, scores};
    gate_rows<T, Layout, kByScore>(own, bias, config, here, memory, write);
  } else {
    const int start = static_cast<int>(config.local_start), stop = static_cast<int>(config.local_stop);
    uint32_t* words = reinterpret_cast<uint32_t*>(memory + scratch_bytes);
    uint32_t* more = words + 2 * experts;
    const BlockMarks block{to,
                           tokens,
                           static_cast<int>(config.columns),
                           experts,
                           start,
                           stop,
                           words,
                           words + experts,
                           gathers ? more : nullptr,
                           reinterpret_cast<uint2*>(more),
                           tile};
    gate_block<T, Layout, kByScore>(own, bias, config, here, memory, warp_bytes, block, expert_ids, weights, scores);
  }
}

}  // namespace

bool uses_cards(const Gate& gate, const Select& select, bool masked, bool prioritised) {
  const bool ranked = select.policy == Policy::score && capacity_of(select, select.tokens) < select.tokens;
  return ranked && is_simple(select, masked, prioritised) && gate.num_experts <= kMaxGateExperts &&
         gate.columns <= kMaxCardColumns && gate.expand != Expand::local;
}

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
                                                         to.top, to.keys, to.cards, to.counters, launch.warp_bytes,
                                                         launch.scratch_bytes, launch.gathers);
  });
  check_cuda(cudaGetLastError(), "gate");
}

template void gate(const float*, const float*, const Gate&, int32_t*, float*, float*, const Marks*, cudaStream_t);
template void gate(const __nv_bfloat16*, const float*, const Gate&, int32_t*, float*, float*, const Marks*,
                   cudaStream_t);
template void gate(const __half*, const float*, const Gate&, int32_t*, float*, float*, const Marks*, cudaStream_t);

}  // namespace capmoe::cuda
