// The grouped product by warpgroups, for many rows on sm_90a: as grouped_gemm.cuh, but tensor cores read both factors
// from shared memory and work on while their warps fetch more.
#pragma once

#include "grouped_gemm.cuh"
#include "wgmma.cuh"

namespace capmoe::cuda {

// A warpgroup computes 64 x 256 sums; each of its warps has 16 of the rows.
template <class T>
using WarpgroupTile = Tile<T, 128, 256, 64, 4, 16, 256, 1>;

template <class T, class Tile>
struct WarpgroupSums {
  static_assert(Tile::kRowBytes == 128 && Tile::kWarpWeights == 256 && Tile::kWeights == 256);

  float sums[32][4];

  __device__ float& at(int slice, int group, int column) { return sums[group][slice * 2 + column]; }

  // Begins to add a stage; first_row: the warpgroup's.
  __device__ void add(uint32_t stage, int first_row) {
    const uint64_t rows = wgmma_operand(stage + first_row * Tile::kRowBytes);
    const uint64_t weights = wgmma_operand(stage + Tile::kRows * Tile::kRowBytes);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::kDepth / 16; ++step) wgmma<T>(sums, rows + step * 2, weights + step * 2);
    wgmma_commit();
  }
};

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    grouped_gemm_sm90_kernel(const T* in, const int32_t* row_tokens, const T* weights, const T* bias,
                             const int32_t* expert_offsets, const int32_t* tokens_per_expert, T* out, int in_rows,
                             int rows, int num_experts, int depth, int columns, Gating gating, int activation,
                             bool early) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) char shared[];
  const GroupedGemm<T> product{in,   row_tokens,  weights, bias,    expert_offsets, tokens_per_expert, out,  in_rows,
                               rows, num_experts, depth,   columns, gating,         activation,        early};
  const Pieces pieces = begin_block<Tile>(product, shared);
  const int steps = (depth + Tile::kDepth - 1) / Tile::kDepth, count = pieces.count();
  if (blockIdx.x >= count) return wait_for_earlier_launches();  // no launch ends before those that it waits for
  char* staging = shared + Tile::kStages * Tile::kStageBytes;
  const uint32_t stages = shared_address(shared);
  constexpr int kAhead = Tile::kStages - 2;  // of the other two, one is read and one may still be
  constexpr uint32_t kBytes = Tile::kStages * Tile::kStageBytes;
  Loader<T, Tile, true> loader(product, pieces, stages);
  for (int s = 0; s < kAhead + 1; ++s) loader.load(s * Tile::kStageBytes);

  uint32_t stage = 0, free = (kAhead + 1) * Tile::kStageBytes;
  const auto after = [&](uint32_t at) { return at + Tile::kStageBytes == kBytes ? 0 : at + Tile::kStageBytes; };
  const int first_row = threadIdx.x / 128 * 64;
  WarpgroupSums<T, Tile> sums;
  // A warpgroup without rows only fetches. The two are apart because ptxas takes no branch between products in flight.
  const auto add_all = [&](auto live) {
    for (int step = 0;;) {
      cp_async_wait<kAhead - 1>();
      fence_async_proxy();
      block_barrier();  // the stage is there for all, and all have done with the one before the last
      if constexpr (decltype(live)::value) sums.add(stages + stage, first_row);
      if (step > 0) {
        loader.load(free);
        free = after(free);
      }
      if constexpr (decltype(live)::value) wgmma_wait<1>();
      stage = after(stage);
      if (++step >= steps) break;
    }
    block_barrier();  // all have done with the last stage but one: the next piece gets it before this one is stored
    loader.load(free);
    free = after(free);
    if constexpr (decltype(live)::value) wgmma_wait<0>();
  };
  for (int index = blockIdx.x; index < count; index += gridDim.x) {
    const Piece piece = pieces[index];
    if (first_row < piece.rows) {
      begin_sums<Tile>(product, piece, sums);
      add_all(std::true_type());
      store<Tile, true>(product, piece, sums, staging);
    } else {
      add_all(std::false_type());
    }
  }
#endif
}

}  // namespace capmoe::cuda
