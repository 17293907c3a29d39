// out[row] = act(in[row] weights[expert]^T + bias[expert]): one persistent launch over every expert's rows.
//
// Stages of rows and weights come to shared memory by cp.async, several ahead of their use and across the end of a
// piece of work: while a block finishes one, the next one's data is already on its way.
#pragma once

#include "common.cuh"
#include "grouped_gemm_activation.cuh"
#include "grouped_gemm_sums.cuh"
#include "grouped_gemm_tile.cuh"

namespace capmoe::cuda {

// How an expert's weight rows make output columns.
enum class Gating { none, concat, interleaved };

template <class T>
struct GroupedGemm {
  const T* in;                // [in_rows, depth]: the rows, or tokens read through row_tokens
  const int32_t* row_tokens;  // or null
  const T* weights;           // [num_experts, columns or 2 * columns, depth]
  const T* bias;              // [num_experts, columns or 2 * columns] or null
  const int32_t* expert_offsets;
  const int32_t* tokens_per_expert;
  T* out;             // [rows, columns]
  int in_rows, rows;  // of what the buffers have; offsets, counts and tokens may say anything
  int num_experts, depth, columns;
  Gating gating;
  int activation;
  bool early;  // launched before what writes `in` has ended
};

// Which weight row of an expert the tile's row `row` is. Gated, 8 gate rows alternate with the 8 up rows of the same
// columns, so that one lane gets the sums of both.
struct WeightRows {
  bool gated;
  int stride, up;  // from a column's weight row to the next column's, and from its gate row to its up row

  template <class T>
  __device__ explicit WeightRows(const GroupedGemm<T>& product)
      : gated(product.gating != Gating::none),
        stride(product.gating == Gating::interleaved ? 2 : 1),
        up(product.gating == Gating::interleaved ? 1 : product.columns) {}

  __device__ int columns(int rows) const { return gated ? rows / 2 : rows; }
  __device__ int column(int row) const { return gated ? row / 16 * 8 + row % 8 : row; }
  __device__ int row(int row, int first_column) const {
    return (first_column + column(row)) * stride + (gated && (row & 8) ? up : 0);
  }
};

// Copies a block's stages, one after the other through all its pieces. kAligned: rows are whole 16-byte chunks.
template <class T, class Tile, bool kAligned>
class Loader {
 public:
  __device__ Loader(const GroupedGemm<T>& product, const Pieces& pieces, uint32_t shared)
      : product_(product), pieces_(pieces), piece_(blockIdx.x) {
    const int thread = thread_index();
    column_ = thread % Tile::kChunks * Tile::kChunk;
    to_ = shared + Tile::offset(thread / Tile::kChunks, thread % Tile::kChunks);
    const bool any = piece_ < pieces_.count();
    const Piece piece = any ? pieces_[piece_] : Piece();
    if (any) begin_weights(piece);
    if (any && product_.early && column_ == 0) prefetch_weights();
    wait_for_earlier_launches();  // which write the rows
    if (any) begin_rows(piece);
  }

  // Into the stage that lies `stage` bytes into shared memory.
  __device__ void load(uint32_t stage) {
    if (static_cast<uint32_t>(k_) < static_cast<uint32_t>(product_.depth) || meet_rows()) {
      const uint32_t live = column_ + k_ < product_.depth ? live_ : 0;
      const uint32_t to = to_ + stage;
#pragma unroll
      for (int i = 0; i < Tile::kWeightPasses; ++i) {
        copy(to + (Tile::kRows + i * Tile::kPass) * Tile::kRowBytes, weights_ + i * weights_pass_ + k_,
             bytes_of(live, Tile::kRowPasses + i));
      }
      const auto* in = reinterpret_cast<const char*>(product_.in + column_ + k_);
      const int row_bytes = product_.depth * static_cast<int>(sizeof(T));
#pragma unroll
      for (int i = 0; i < Tile::kRowPasses; ++i) {
        const auto* from = reinterpret_cast<const T*>(in + int64_t{rows_[i]} * row_bytes);
        copy(to + i * Tile::kPass * Tile::kRowBytes, from, bytes_of(live, i));
      }
      k_ += Tile::kDepth;
      if (k_ >= product_.depth) {
        piece_ += gridDim.x;
        begin();
      }
    }
    cp_async_commit();
  }

 private:
  __device__ void begin() {
    if (piece_ >= pieces_.count()) return;
    const Piece piece = pieces_[piece_];
    begin_weights(piece);
    begin_rows(piece);
  }

  __device__ void begin_weights(const Piece& piece) {
    k_ = kRowsAsked;
    live_ = 0;
    const int first = thread_index() / Tile::kChunks;  // of this thread's rows
    const WeightRows map(product_);
    const int64_t depth = product_.depth;
    const int64_t expert_row = static_cast<int64_t>(piece.expert) * product_.columns * (map.gated ? 2 : 1);
    weights_ = product_.weights + (expert_row + map.row(first, piece.column)) * depth + column_;
    weights_pass_ = map.columns(Tile::kPass) * map.stride * depth;
#pragma unroll
    for (int i = 0; i < Tile::kWeightPasses; ++i) {
      const bool live = piece.column + map.column(first + i * Tile::kPass) < product_.columns;
      live_ |= static_cast<uint32_t>(live) << (Tile::kRowPasses + i);
    }
  }

  // Only asks for the row numbers: there is a stage's time until meet_rows() looks at them.
  __device__ void begin_rows(const Piece& piece) {
    const int first = thread_index() / Tile::kChunks;
#pragma unroll
    for (int i = 0; i < Tile::kRowPasses; ++i) {
      const int row = first + i * Tile::kPass;
      rows_[i] = 0;
      if (row >= piece.rows) continue;
      rows_[i] = product_.row_tokens ? product_.row_tokens[piece.row + row] : piece.row + row;
      live_ |= 1u << i;
    }
  }

  // At a piece's first stage: a token that `in` does not have is taken for its last. False where no piece is left.
  // Volatile, or the compiler selects at every stage.
  __device__ bool meet_rows() {
    if (k_ != kRowsAsked) return false;
    k_ = 0;
#pragma unroll
    for (int i = 0; i < Tile::kRowPasses; ++i) {
      asm volatile("min.u32 %0, %0, %1;" : "+r"(rows_[i]) : "r"(product_.in_rows - 1));
    }
    return true;
  }

  // To the L2 cache, 128 bytes of a row at a time: what the first stages will ask for.
  __device__ void prefetch_weights() const {
    constexpr int kStep = 128 / sizeof(T);
    const int end = min(product_.depth, (Tile::kStages - 1) * Tile::kDepth);
#pragma unroll
    for (int i = 0; i < Tile::kWeightPasses; ++i) {
      if (!(live_ >> (Tile::kRowPasses + i) & 1)) continue;
      for (int k = 0; k < end; k += kStep) prefetch_l2(weights_ + i * weights_pass_ + k);
    }
  }

  // 16 where bit i is set.
  __device__ static int bytes_of(uint32_t live, int i) { return (i < 4 ? live << (4 - i) : live >> (i - 4)) & 16; }

  // Of 16 bytes the first `bytes`, and zeros.
  __device__ void copy(uint32_t to, const T* from, int bytes) {
    if constexpr (kAligned) {
      cp_async16(to, from, bytes);
    } else {
      alignas(16) T chunk[Tile::kChunk];
#pragma unroll
      for (int i = 0; i < Tile::kChunk; ++i)
        chunk[i] = bytes > 0 && column_ + k_ + i < product_.depth ? from[i] : T(0.0f);
      const auto words = reinterpret_cast<const uint32_t (&)[4]>(chunk);
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                   "r"(words[3])
                   : "memory");
    }
  }

  static constexpr int kRowsAsked = -1;  // k_ at a piece's beginning
  const GroupedGemm<T>& product_;
  const Pieces& pieces_;
  int piece_, k_ = INT32_MAX;  // of the next stage; no piece is left where k_ is not less than the depth
  int column_;                 // of k, this thread's in a stage
  uint32_t to_, live_ = 0;     // live_: a bit for each pass, rows then weights, that reads anything
  int rows_[Tile::kRowPasses];
  const T* weights_;
  int64_t weights_pass_;
};

// The sums start from the bias.
template <class Tile, class T, class Sums>
__device__ __forceinline__ void begin_sums(const GroupedGemm<T>& product, const Piece& piece, Sums& sums) {
  const LanePlace<Tile> at;
  const WeightRows map(product);
  const T* bias = product.bias + static_cast<int64_t>(piece.expert) * product.columns * (map.gated ? 2 : 1);
#pragma unroll
  for (int j = 0; j < Tile::kGroups; ++j) {
#pragma unroll
    for (int c = 0; c < Tile::kPack; ++c) {
#pragma unroll
      for (int s = 0; s < Tile::kSlices; ++s) sums.at(s, j, c) = 0.0f;
    }
  }
  if (product.bias == nullptr) return;
#pragma unroll
  for (int j = 0; j < Tile::kGroups; ++j) {
#pragma unroll
    for (int c = 0; c < Tile::kPack; ++c) {
      const int row = at.warp_weight + j * 8 + at.lane_column + c;
      if (piece.column + map.column(row) >= product.columns) continue;
      const auto start = static_cast<float>(bias[map.row(row, piece.column)]);
#pragma unroll
      for (int s = 0; s < Tile::kSlices; ++s) sums.at(s, j, c) = start;
    }
  }
}

// Rounds and stores a warp's sums, part of a slice after part of a slice, through `staging`, in chunks of 16 bytes.
template <class Tile, bool kGated, bool kAligned, class T, class Sums>
__device__ __forceinline__ void store(const GroupedGemm<T>& product, const Piece& piece, Sums& sums, char* staging) {
  constexpr int kStep = kGated ? 2 : 1;  // groups of weight rows that make one of columns
  constexpr int kGroups = Tile::kPartGroups, kColumns = kGroups * 8 / kStep, kChunks = kColumns / Tile::kChunk;
  const LanePlace<Tile> at;
  staging += at.warp * Tile::kStagingBytes;
  char* to = staging + at.lane_row * Tile::kStagingRow + at.lane_column * sizeof(T);
  const char* from = staging + at.lane % kChunks * 16;
#pragma unroll 1
  for (int part = 0; part < Tile::kSlices * Tile::kParts; ++part) {
    const int first_row = at.warp_row + part / Tile::kParts * Tile::kSliceRows;
    if (first_row >= piece.rows) return;
    float values[kGroups][Tile::kPack];
#pragma unroll
    for (int p = 0; p < Tile::kSlices * Tile::kParts; ++p) {
      if (p != part) continue;  // registers have no index at run time
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
#pragma unroll
        for (int c = 0; c < Tile::kPack; ++c) {
          const float sum = sums.at(p / Tile::kParts, p % Tile::kParts * kGroups + j, c);
          // Volatile, or the compiler selects from all parts rather than branch to one.
          asm volatile("mov.f32 %0, %1;" : "=f"(values[j][c]) : "f"(sum));
        }
      }
    }
    activate<T, kGated>(product.activation, values);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kGroups; j += kStep) {
      *reinterpret_cast<uint32_t*>(to + j / kStep * 8 * sizeof(T)) = pack(values[j], T());
    }
    __syncwarp();
    const int column =
        piece.column + at.warp_weight / kStep + part % Tile::kParts * kColumns + at.lane % kChunks * Tile::kChunk;
#pragma unroll
    for (int i = 0; i < Tile::kSliceRows * kChunks; i += 32) {
      const int row = (at.lane + i) / kChunks;
      if (row >= min(Tile::kSliceRows, piece.rows - first_row) || column >= product.columns) continue;
      T* out = product.out + static_cast<int64_t>(piece.row + first_row + row) * product.columns + column;
      const char* chunk = from + row * Tile::kStagingRow;
      if constexpr (kAligned) {
        *reinterpret_cast<uint4*>(out) = *reinterpret_cast<const uint4*>(chunk);
      } else {
        for (int c = 0; c < min(product.columns - column, Tile::kChunk); ++c) {
          out[c] = reinterpret_cast<const T*>(chunk)[c];
        }
      }
    }
  }
}

template <class Tile, bool kAligned, class T, class Sums>
__device__ __forceinline__ void store(const GroupedGemm<T>& product, const Piece& piece, Sums& sums, char* staging) {
  if (product.gating == Gating::none) {
    store<Tile, false, kAligned>(product, piece, sums, staging);
  } else {
    store<Tile, true, kAligned>(product, piece, sums, staging);
  }
}

// What a block does first. -> all pieces, whose table lies behind what is fixed of the shared memory.
template <class Tile, class T>
__device__ __forceinline__ Pieces begin_block(const GroupedGemm<T>& product, char* shared) {
  let_next_launch_begin();
  auto* experts = reinterpret_cast<Pieces::Expert*>(shared + Tile::kFixedBytes);
  list_experts<Tile::kWarps>(product.expert_offsets, product.tokens_per_expert, product.num_experts, product.rows,
                             Tile::kRows, experts);
  const int block_columns = WeightRows(product).columns(Tile::kWeights);
  const int column_blocks = (product.columns + block_columns - 1) / block_columns;
  return {experts, product.num_experts, Tile::kRows, block_columns, column_blocks};
}

template <class T, class Tile, bool kAligned>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    grouped_gemm_kernel(const T* in, const int32_t* row_tokens, const T* weights, const T* bias,
                        const int32_t* expert_offsets, const int32_t* tokens_per_expert, T* out, int in_rows, int rows,
                        int num_experts, int depth, int columns, Gating gating, int activation, bool early) {
  extern __shared__ __align__(1024) char shared[];
  const GroupedGemm<T> product{in,   row_tokens,  weights, bias,    expert_offsets, tokens_per_expert, out,  in_rows,
                               rows, num_experts, depth,   columns, gating,         activation,        early};
  const Pieces pieces = begin_block<Tile>(product, shared);
  char* staging = shared + Tile::kStages * Tile::kStageBytes;
  const uint32_t stages = shared_address(shared);
  Loader<T, Tile, kAligned> loader(product, pieces, stages);
  for (int s = 0; s < Tile::kStages - 1; ++s) loader.load(s * Tile::kStageBytes);

  constexpr uint32_t kLast = (Tile::kStages - 1) * Tile::kStageBytes;
  uint32_t stage = 0, free = kLast;
  const int steps = (depth + Tile::kDepth - 1) / Tile::kDepth, count = pieces.count();
  Sums<T, Tile> sums;
  for (int index = blockIdx.x; index < count; index += gridDim.x) {
    const Piece piece = pieces[index];
    begin_sums<Tile>(product, piece, sums);
    for (int step = 0; step < steps; ++step) {
      cp_async_wait<Tile::kStages - 2>();
      __syncthreads();  // the stage is there for all, and all have done with the one that comes free
      loader.load(free);
      sums.add(stages + stage);
      free = stage;
      stage = stage == kLast ? 0 : stage + Tile::kStageBytes;
    }
    sums.finish();
    store<Tile, kAligned>(product, piece, sums, staging);
  }
}

}  // namespace capmoe::cuda
