// The shape of a block's work, and which piece of the grouped product it is.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace capmoe::cuda {

// A block computes kRows x kWeights sums, kDepth columns of k at a time, with kStages of them in shared memory; a warp
// computes kWarpRows x kWarpWeights. kBlocks: how many blocks a multiprocessor should hold.
template <class T, int kRows_, int kWeights_, int kDepth_, int kStages_, int kWarpRows_, int kWarpWeights_,
          int kBlocks_>
struct Tile {
  static constexpr int kRows = kRows_, kWeights = kWeights_, kDepth = kDepth_, kStages = kStages_;
  static constexpr int kWarpRows = kWarpRows_, kWarpWeights = kWarpWeights_, kBlocks = kBlocks_;
  static constexpr int kRowWarps = kRows / kWarpRows;
  static constexpr int kWarps = kRowWarps * (kWeights / kWarpWeights);
  static constexpr int kThreads = kWarps * 32;

  static constexpr int kChunk = 16 / sizeof(T);     // elements that move together
  static constexpr int kChunks = kDepth / kChunk;   // of a row of a stage
  static constexpr int kRowBytes = kChunks * 16;    // of a stage
  static constexpr int kPass = kThreads / kChunks;  // rows that the block copies at once
  static constexpr int kRowPasses = kRows / kPass, kWeightPasses = kWeights / kPass;
  static constexpr int kStageBytes = (kRows + kWeights) * kRowBytes;
  static_assert(kRows % kPass == 0 && kWeights % kPass == 0);
  static_assert(kPass % 16 == 0, "a pass is whole pairs of gate and up groups, and leaves the swizzle as it is");

  // A lane has kPack neighbouring columns of one row of a slice, in every group of 8 columns. Sums leave a slice at a
  // time, at most kPartGroups of its groups at once.
  static constexpr int kPack = 4 / sizeof(T);
  static constexpr int kSliceRows = 4 * kPack, kSlices = kWarpRows / kSliceRows;
  static constexpr int kGroups = kWarpWeights / 8, kPartGroups = kGroups < 16 ? kGroups : 16;
  static constexpr int kParts = kGroups / kPartGroups;
  static constexpr int kStagingRow = (kPartGroups + 1) * 8 * sizeof(T);  // padded: rows start in different banks
  static constexpr int kStagingBytes = kSliceRows * kStagingRow;         // of a warp

  // What the experts' table adds to it: the rest of the block's shared memory.
  static constexpr int kFixedBytes = kStages * kStageBytes + kWarps * kStagingBytes;

  // Byte of a stage where a row's chunk lies: eight rows' chunks of one column are in different banks.
  __device__ static int offset(int row, int chunk) {
    const int swizzle = kChunks >= 8 ? row & 7 : row >> 1 & 3;
    return row * kRowBytes + ((chunk ^ swizzle) << 4);
  }
};

// By how many rows an expert is expected to have: Many from kManyRows on. Unaligned: for rows that are no whole 16-byte
// chunks.
template <class T>
struct Tiles {
  static constexpr int kManyRows = 65;
  using Few = Tile<T, 16, 64, 64, 8, 16, 16, 2>;
  using Some = Tile<T, 64, 256, 32, 3, 64, 64, 2>;
  using Many = Tile<T, 128, 128, 32, 4, 64, 64, 2>;
  using Unaligned = Tile<T, 64, 128, 64, 2, 32, 32, 1>;
};

template <>
struct Tiles<float> {
  static constexpr int kManyRows = 64;
  using Few = Tile<float, 16, 64, 32, 8, 16, 16, 2>;
  using Some = Tile<float, 64, 128, 16, 4, 32, 32, 1>;
  using Many = Tile<float, 128, 128, 32, 3, 32, 64, 1>;
  using Unaligned = Tile<float, 64, 128, 16, 2, 32, 32, 1>;
};

constexpr int64_t kMaxRows = int64_t{1} << 30;  // of a buffer, exclusive

// Rows [row, row + rows) of the packed buffer, all of one expert, times its weights from output column `column` on.
struct Piece {
  int expert, row, rows, column;
};

// The experts' rows cut into blocks of kRows, in shared memory, and the pieces numbered: of one expert after the
// other, and of one expert all row blocks of the same columns first, since they read the same weights; but no more than
// kTogether of them, whose rows shall stay in the L2 cache for the next columns.
struct Pieces {
  struct Expert {
    int first_block, row, rows;
  };

  static constexpr unsigned kTogether = 16;

  const Expert* experts;  // [num_experts + 1]; the last has only first_block: how many there are
  int num_experts, block_rows, block_columns, column_blocks;

  __device__ int count() const { return experts[num_experts].first_block * column_blocks; }

  __device__ Piece operator[](int index) const {
    int low = 0, high = num_experts;  // first piece of low <= index < first piece of high
    while (high - low > 1) {
      const int middle = static_cast<int>(static_cast<unsigned>(low + high) / 2);
      (experts[middle].first_block * column_blocks <= index ? low : high) = middle;
    }
    const Expert expert = experts[low];
    const unsigned row_blocks = experts[low + 1].first_block - expert.first_block;
    const unsigned place = index - expert.first_block * column_blocks;
    const unsigned first = row_blocks > kTogether ? place / (kTogether * column_blocks) * kTogether : 0;
    const unsigned together = min(kTogether, row_blocks - first), rest = place - first * column_blocks;
    const unsigned across = rest / together;
    const int skipped = static_cast<int>(first + rest - across * together) * block_rows;
    return {low, expert.row + skipped, min(block_rows, expert.rows - skipped),
            static_cast<int>(across) * block_columns};
  }

  __host__ __device__ static constexpr int bytes(int num_experts, int warps) {
    return (num_experts + 1) * static_cast<int>(sizeof(Expert)) + warps * static_cast<int>(sizeof(int));
  }
};

// Writes `experts` [num_experts + 1], and uses the kWarps integers behind it. All threads of a block call it. Whatever
// the offsets and counts are, experts have rows of the buffer's `rows` only, which are fewer than kMaxRows.
template <int kWarps>
__device__ void list_experts(const int32_t* expert_offsets, const int32_t* tokens_per_expert, int num_experts,
                             unsigned rows, unsigned block_rows, Pieces::Expert* experts) {
  // Blocks of rows where no row is of two experts. More are not counted, so that a warp's sum stays within 32 bits.
  const unsigned most = rows / block_rows + min(rows, static_cast<unsigned>(num_experts));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned* warp_blocks = reinterpret_cast<unsigned*>(experts + num_experts + 1);
  const int each = (num_experts + kWarps * 32 - 1) / (kWarps * 32);
  const int begin = min(static_cast<int>(threadIdx.x) * each, num_experts), end = min(begin + each, num_experts);
  unsigned blocks = 0;
  for (int e = begin; e < end; ++e) {
    const unsigned row = min(static_cast<unsigned>(expert_offsets[e]), rows);
    const unsigned own = min(static_cast<unsigned>(max(tokens_per_expert[e], 0)), rows - row);
    experts[e] = {0, static_cast<int>(row), static_cast<int>(own)};
    blocks = min(blocks + (own + block_rows - 1) / block_rows, most);
  }
  unsigned up_to = blocks;  // of this warp's lanes up to this one
  for (int step = 1; step < 32; step *= 2) {
    const unsigned below = __shfl_up_sync(~0u, up_to, step);
    if (lane >= step) up_to += below;
  }
  if (lane == 31) warp_blocks[warp] = min(up_to, most);
  __syncthreads();
  unsigned first = up_to - blocks;
  for (int w = 0; w < warp; ++w) first += warp_blocks[w];
  for (int e = begin; e < end; ++e) {
    first = min(first, most);
    experts[e].first_block = static_cast<int>(first);
    first += (experts[e].rows + block_rows - 1) / block_rows;
  }
  if (threadIdx.x == kWarps * 32 - 1) experts[num_experts].first_block = static_cast<int>(min(first, most));
  __syncthreads();
}

}  // namespace capmoe::cuda
