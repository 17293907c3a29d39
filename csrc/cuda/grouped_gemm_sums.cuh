// A warp's sums: from a stage in shared memory to registers, by tensor cores for 16-bit elements and by FMA for
// float32.
#pragma once

#include "grouped_gemm_tile.cuh"
#include "mma.cuh"

namespace capmoe::cuda {

// threadIdx.x, opaque to the compiler, which would keep what follows from it in registers all through the main loop.
__device__ __forceinline__ unsigned thread_index() {
  unsigned thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// Both kinds hold kSlices slices of kSliceRows rows. A lane has row `lane_row` of each, and of every group of 8 weight
// rows the kPack from `lane_column` on. Groups alternate gate and up in a gated product.
template <class Tile>
struct LanePlace {
  unsigned thread = thread_index(), lane = thread % 32, warp = thread / 32;  // without a sign, division is a shift
  int warp_row = warp % Tile::kRowWarps * Tile::kWarpRows;
  int warp_weight = warp / Tile::kRowWarps * Tile::kWarpWeights;
  int lane_row = lane / (8u / Tile::kPack), lane_column = lane % (8u / Tile::kPack) * Tile::kPack;
};

template <class T, class Tile>
struct Sums {
  static constexpr int kRowGroups = Tile::kWarpRows / 16, kGroups = Tile::kGroups;
  static constexpr int kSteps = Tile::kDepth / 16;
  static_assert(Tile::kWarpRows % 16 == 0 && Tile::kWarpWeights % 16 == 0 && Tile::kDepth % 16 == 0);

  float sums[kRowGroups][kGroups][4];
  int a, b;  // this lane's bytes of the stage for ldmatrix, at the first 16 columns of k

  __device__ Sums() {
    const LanePlace<Tile> at;
    const unsigned l = at.lane;
    a = Tile::offset(at.warp_row + l % 16, l / 16);
    b = Tile::kRows * Tile::kRowBytes + Tile::offset(at.warp_weight + l / 16 * 8 + l % 8, l / 8 % 2);
  }

  __device__ float& at(int slice, int group, int column) { return sums[slice / 2][group][slice % 2 * 2 + column]; }

  __device__ void finish() {}

  // kHalf: only the first half of the rows.
  template <bool kHalf>
  __device__ void add(uint32_t stage) {
    constexpr int kLive = kHalf ? kRowGroups / 2 : kRowGroups;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      // Chunks 2 * step and 2 * step + 1: what the swizzle does to the others, it does to these two.
      const uint32_t from_a = stage + (a ^ step << 5), from_b = stage + (b ^ step << 5);
      uint32_t rows[kLive][4];
#pragma unroll
      for (int i = 0; i < kLive; ++i) ldmatrix4(rows[i], from_a + i * 16 * Tile::kRowBytes);
#pragma unroll
      for (int j = 0; j < kGroups; j += 2) {
        uint32_t weights[4];
        ldmatrix4(weights, from_b + j * 8 * Tile::kRowBytes);
#pragma unroll
        for (int i = 0; i < kLive; ++i) {
          mma<T>(sums[i][j], rows[i], weights[0], weights[1]);
          mma<T>(sums[i][j + 1], rows[i], weights[2], weights[3]);
        }
      }
    }
  }
};

// float32 by FMA: tensor cores would round the factors to 11 bits, and three products of halves still lose the last.
// Sums of 64 products are added to the whole: one chain of thousands would lose several bits more.
template <class Tile>
struct Sums<float, Tile> {
  static constexpr int kSlices = Tile::kSlices, kGroups = Tile::kGroups;
  static constexpr int kPartStages = 64 / Tile::kDepth;

  float parts[kSlices][kGroups] = {};
  int added = 0;  // stages of `parts`
  float sums[kSlices][kGroups];
  int a[2], b;  // this lane's bytes of the stage for its first two rows and first weight row, at the first chunk

  __device__ Sums() {
    const LanePlace<Tile> at;
    a[0] = Tile::offset(at.warp_row + at.lane_row, 0);
    a[1] = Tile::offset(at.warp_row + at.lane_row + 4, 0);
    b = Tile::kRows * Tile::kRowBytes + Tile::offset(at.warp_weight + at.lane_column, 0);
  }

  __device__ float& at(int slice, int group, int) { return sums[slice][group]; }

  __device__ static float4 load(uint32_t address) {
    float4 out;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(out.x), "=f"(out.y), "=f"(out.z), "=f"(out.w)
                 : "r"(address)
                 : "memory");
    return out;
  }

  template <bool kHalf>
  __device__ void add(uint32_t stage) {
    constexpr int kLive = kHalf ? kSlices / 2 : kSlices;
#pragma unroll 1
    for (int chunk = 0; chunk < Tile::kChunks; ++chunk) {
      // Rows that lie 8 apart are swizzled alike.
      const uint32_t from_a[] = {stage + (a[0] ^ chunk << 4), stage + (a[1] ^ chunk << 4)};
      const uint32_t from_b = stage + (b ^ chunk << 4);
      float4 rows[kLive];
#pragma unroll
      for (int i = 0; i < kLive; ++i) rows[i] = load(from_a[i % 2] + i / 2 * 8 * Tile::kRowBytes);
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        const float4 weights = load(from_b + j * 8 * Tile::kRowBytes);
#pragma unroll
        for (int i = 0; i < kLive; ++i) {
          float& sum = parts[i][j];
          sum = fmaf(rows[i].x, weights.x, sum);
          sum = fmaf(rows[i].y, weights.y, sum);
          sum = fmaf(rows[i].z, weights.z, sum);
          sum = fmaf(rows[i].w, weights.w, sum);
        }
      }
    }
    if (++added == kPartStages) finish();
  }

  __device__ void finish() {
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        sums[i][j] += parts[i][j];
        parts[i][j] = 0.0f;
      }
    }
    added = 0;
  }
};

}  // namespace capmoe::cuda
