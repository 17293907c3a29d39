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
  __device__ int column(unsigned row) const { return gated ? row / 16 * 8 + row % 8 : row; }
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
    const unsigned thread = thread_index();
    column_ = thread % Tile::kChunks * Tile::kChunk;
    to_ = shared + Tile::offset(thread / Tile::kChunks, thread % Tile::kChunks);
    const Piece piece = pieces_[piece_];
    begin_weights(piece);
    if (product_.early && column_ == 0) prefetch_weights();
    wait_for_earlier_launches();  // which write the rows
    begin_rows(piece);
  }

  // Into the stage that lies `stage` bytes into shared memory.
  __device__ void load(uint32_t stage) {
    if (static_cast<uint32_t>(k_) < static_cast<uint32_t>(product_.depth) || meet_rows()) {
      const uint32_t live = column_ + k_ < product_.depth ? live_ : 0;
      const uint32_t to = to_ + stage;
#pragma unroll
      for (int i = 0; i < Tile::kWeightPasses; ++i) {
        copy(to + (Tile::kRows + i * Tile::kPass) * Tile::kRowBytes, weights_[i] + k_,
             live & 1u << (Tile::kRowPasses + i));
      }
#pragma unroll
      for (int i = 0; i < Tile::kRowPasses; ++i) {
        copy(to + i * Tile::kPass * Tile::kRowBytes, rows_[i] + k_, live & 1u << i);
      }
      k_ += Tile::kDepth;
      if (k_ >= product_.depth) begin_next();
    }
    cp_async_commit();
  }

 private:
  __device__ void begin_next() {
    piece_ += gridDim.x;
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
    const T* weights = product_.weights + (expert_row + map.row(first, piece.column)) * depth + column_;
    const int columns = product_.columns - piece.column - map.column(first);  // from its first row's on
#pragma unroll
    for (int i = 0; i < Tile::kWeightPasses; ++i) {
      const bool live = map.columns(i * Tile::kPass) < columns;
      live_ |= static_cast<uint32_t>(live) << (Tile::kRowPasses + i);
      weights_[i] = weights + map.columns(i * Tile::kPass) * map.stride * depth;
    }
  }

  // Only asks for the row numbers: there is a stage's time until meet_rows() looks at them.
  __device__ void begin_rows(const Piece& piece) {
    const int first = thread_index() / Tile::kChunks;
#pragma unroll
    for (int i = 0; i < Tile::kRowPasses; ++i) {
      const int row = first + i * Tile::kPass;
      const bool live = row < piece.rows;
      asked_[i] = piece.row + row;
      if (live && product_.row_tokens) asked_[i] = product_.row_tokens[piece.row + row];
      live_ |= static_cast<uint32_t>(live) << i;
    }
  }

  // At a piece's first stage: a token that `in` does not have is taken for its last. False where no piece is left.
  __device__ bool meet_rows() {
    if (k_ != kRowsAsked) return false;
    k_ = 0;
#pragma unroll
    for (int i = 0; i < Tile::kRowPasses; ++i) {
      const uint32_t row = min(static_cast<uint32_t>(asked_[i]), static_cast<uint32_t>(product_.in_rows - 1));
      rows_[i] = product_.in + (int64_t{row} * product_.depth + column_);
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
      for (int k = 0; k < end; k += kStep) prefetch_l2(weights_[i] + k);
    }
  }

  // 16 bytes, or zeros where `live` is 0.
  __device__ void copy(uint32_t to, const T* from, uint32_t live) {
    if constexpr (kAligned) {
      cp_async16(to, from, live);
    } else {
      alignas(16) T chunk[Tile::kChunk];
#pragma unroll
      for (int i = 0; i < Tile::kChunk; ++i) {
        chunk[i] = live != 0 && column_ + k_ + i < product_.depth ? from[i] : T(0.0f);
      }
      const auto words = reinterpret_cast<const uint32_t (&)[4]>(chunk);
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                   "r"(words[3])
                   : "memory");
    }
  }

  static constexpr int kRowsAsked = -1;  // k_ at a piece's beginning
  const GroupedGemm<T>& product_;
  const Pieces& pieces_;
  int piece_, k_;           // of the next stage; no piece is left where k_ is not less than the depth
  int column_;              // of k, this thread's in a stage
  uint32_t to_, live_ = 0;  // live_: a bit for each pass, rows then weights, that reads anything
  int asked_[Tile::kRowPasses];
  const T *rows_[Tile::kRowPasses], *weights_[Tile::kWeightPasses];  // at the piece's first stage
};

// The sums start from the bias.
template <class Tile, class T, class Sums>
__device__ __forceinline__ void begin_sums(const GroupedGemm<T>& product, const Piece& piece, Sums& sums) {
  const LanePlace<Tile> at;
  const WeightRows map(product);
  const T* bias = product.bias + static_cast<int64_t>(piece.expert) * product.columns * (map.gated ? 2 : 1);
  const auto begin = [&](auto start) {
#pragma unroll
    for (int j = 0; j < Tile::kGroups; ++j) {
#pragma unroll
      for (int c = 0; c < Tile::kPack; ++c) {
        const float value = start(static_cast<int>(at.warp_weight + j * 8 + at.lane_column + c));
#pragma unroll
        for (int s = 0; s < Tile::kSlices; ++s) sums.at(s, j, c) = value;
      }
    }
  };
  if (product.bias == nullptr) {
    begin([](int) { return 0.0f; });
  } else {
    begin([&](int row) {
      const bool any = piece.column + map.column(row) < product.columns;
      return any ? static_cast<float>(bias[map.row(row, piece.column)]) : 0.0f;
    });
  }
}

// A warp's rounded values on their way out: part of a slice after part of a slice, through `staging`, in chunks of 16
// bytes. kGated: two groups of weight rows make one of columns.
template <class T, class Tile, bool kGated, bool kAligned>
class Store {
 public:
  static constexpr int kStep = kGated ? 2 : 1, kGroups = Tile::kPartGroups, kParts = Tile::kSlices * Tile::kParts;
  using Values = float[kGroups][Tile::kPack];

  __device__ Store(const GroupedGemm<T>& product, const Piece& piece, char* staging)
      : columns_(product.columns), rows_(piece.rows - at_.warp_row) {
    staging += at_.warp * Tile::kStagingBytes;
    to_ = staging + at_.lane_row * Tile::kStagingRow + at_.lane_column * sizeof(T);
    from_ = staging + at_.lane / kChunks * Tile::kStagingRow + at_.lane % kChunks * 16;
    column_ = piece.column + at_.warp_weight / kStep + at_.lane % kChunks * Tile::kChunk;
    out_ = product.out + static_cast<int64_t>(piece.row + at_.warp_row + at_.lane / kChunks) * columns_ + column_;
  }

  // Whether the part has a row.
  __device__ bool any(int part) const { return part / Tile::kParts * Tile::kSliceRows < rows_; }

  __device__ void put(int part, const Values& values) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kGroups; j += kStep) {
      *reinterpret_cast<uint32_t*>(to_ + j / kStep * 8 * sizeof(T)) = pack(values[j], T());
    }
    __syncwarp();
    const int first_row = part / Tile::kParts * Tile::kSliceRows, column = part % Tile::kParts * kColumns;
#pragma unroll
    for (int i = 0; i < Tile::kSliceRows * kChunks; i += 32) {
      const int row = i / kChunks;  // beside this lane's
      if (at_.lane / kChunks + row >= min(Tile::kSliceRows, rows_ - first_row)) continue;
      if (column_ + column >= columns_) continue;
      T* out = out_ + static_cast<int64_t>(first_row + row) * columns_ + column;
      const char* chunk = from_ + row * Tile::kStagingRow;
      if constexpr (kAligned) {
        *reinterpret_cast<uint4*>(out) = *reinterpret_cast<const uint4*>(chunk);
      } else {
        for (int c = 0; c < min(columns_ - column_ - column, Tile::kChunk); ++c) {
          out[c] = reinterpret_cast<const T*>(chunk)[c];
        }
      }
    }
  }

 private:
  static constexpr int kColumns = kGroups * 8 / kStep, kChunks = kColumns / Tile::kChunk;

  const LanePlace<Tile> at_;
  int columns_, rows_;  // rows_: from the warp's first on
  int column_;          // of this lane's chunk, in the first part of a slice
  char* to_;
  const char* from_;
  T* out_;
};

// Activates, rounds and stores a warp's sums. kActivation: what is known when compiling, which makes straight code, or
// else kAnyActivation.
template <class Tile, bool kGated, bool kAligned, int kActivation, class T, class Sums>
__device__ __forceinline__ void store(const GroupedGemm<T>& product, const Piece& piece, Sums& sums, char* staging) {
  using Out = Store<T, Tile, kGated, kAligned>;
  Out out(product, piece, staging);
  const auto take = [&](int part, typename Out::Values& values) {
#pragma unroll
    for (int j = 0; j < Out::kGroups; ++j) {
#pragma unroll
      for (int c = 0; c < Tile::kPack; ++c) {
        values[j][c] = sums.at(part / Tile::kParts, part % Tile::kParts * Out::kGroups + j, c);
      }
    }
  };
  if constexpr (kActivation != kAnyActivation) {
#pragma unroll
    for (int part = 0; part < Out::kParts; ++part) {
      if (!out.any(part)) return;
      float values[Out::kGroups][Tile::kPack];
      take(part, values);
      activate<T, kGated>(kActivation, values);
      out.put(part, values);
    }
  } else {
#pragma unroll 1
    for (int part = 0; part < Out::kParts; ++part) {
      if (!out.any(part)) return;
      float values[Out::kGroups][Tile::kPack];
#pragma unroll
      for (int p = 0; p < Out::kParts; ++p) {
        if (p != part) continue;  // registers have no index at run time
        take(p, values);
        // Volatile, or the compiler selects from all parts rather than branch to one.
#pragma unroll
        for (int j = 0; j < Out::kGroups; ++j) {
#pragma unroll
          for (int c = 0; c < Tile::kPack; ++c) asm volatile("" : "+f"(values[j][c]));
        }
      }
      activate<T, kGated>(product.activation, values);
      out.put(part, values);
    }
  }
}

template <class Tile, bool kAligned, class T, class Sums>
__device__ __forceinline__ void store(const GroupedGemm<T>& product, const Piece& piece, Sums& sums, char* staging) {
  constexpr int kSilu = static_cast<int>(Activation::silu);
  const bool gated = product.gating != Gating::none;
  if (kAligned && gated && product.activation == kSilu) {
    store<Tile, true, kAligned, kSilu>(product, piece, sums, staging);
  } else if (gated) {
    store<Tile, true, kAligned, kAnyActivation>(product, piece, sums, staging);
  } else if (kAligned && product.activation == kNoActivation) {
    store<Tile, false, kAligned, kNoActivation>(product, piece, sums, staging);
  } else {
    store<Tile, false, kAligned, kAnyActivation>(product, piece, sums, staging);
  }
}

// What a block does first. -> all pieces, whose table lies behind what is fixed of the shared memory.
template <class Tile, class T>
__device__ __forceinline__ Pieces begin_block(const GroupedGemm<T>& product, char* shared) {
  let_next_launch_begin();
  auto* experts = reinterpret_cast<Pieces::Expert*>(shared + Tile::kFixedBytes);
  list_experts<Tile::kWarps>(product.expert_offsets, product.tokens_per_expert, product.num_experts, product.rows,
                             Tile::kRows, experts);
  const WeightRows map(product);
  const unsigned weights = map.gated ? 2 * product.columns : product.columns;
  const unsigned column_blocks = (weights + Tile::kWeights - 1) / Tile::kWeights;
  return {experts, product.num_experts, Tile::kRows, map.columns(Tile::kWeights), static_cast<int>(column_blocks)};
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
  const int steps = (depth + Tile::kDepth - 1) / Tile::kDepth, count = pieces.count();
  if (blockIdx.x >= count) return wait_for_earlier_launches();  // no launch ends before those that it waits for
  char* staging = shared + Tile::kStages * Tile::kStageBytes;
  const uint32_t stages = shared_address(shared);
  Loader<T, Tile, kAligned> loader(product, pieces, stages);
  for (int s = 0; s < Tile::kStages - 1; ++s) loader.load(s * Tile::kStageBytes);

  constexpr uint32_t kLast = (Tile::kStages - 1) * Tile::kStageBytes;
  constexpr bool kHalves = Tile::kWarpRows >= 32;
  uint32_t stage = 0, free = kLast;
  Sums<T, Tile> sums;
  for (int index = blockIdx.x; index < count; index += gridDim.x) {
    const Piece piece = pieces[index];
    const int live = piece.rows - LanePlace<Tile>().warp_row;  // of the warp's rows, if above 0
    begin_sums<Tile>(product, piece, sums);
    int step = 0;
    do {  // at least once, or the compiler keeps the sums twice
      cp_async_wait<Tile::kStages - 2>();
      __syncthreads();  // the stage is there for all, and all have done with the one that comes free
      loader.load(free);
      if (Tile::kRowWarps == 1 || live > 0) {
        if (!kHalves || live > Tile::kWarpRows / 2) {
          sums.template add<false>(stages + stage);
        } else {
          sums.template add<kHalves>(stages + stage);
        }
      }
      free = stage;
      stage = stage == kLast ? 0 : stage + Tile::kStageBytes;
    } while (++step < steps);
    sums.finish();
    store<Tile, kAligned>(product, piece, sums, staging);
  }
}

}  // namespace capmoe::cuda
