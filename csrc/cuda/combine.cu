// combine: threads own columns of a token and walk its rows, in the order of its candidates.
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "combine_pack.cuh"
#include "common.cuh"
#include "kernels.h"

namespace capmoe::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kMaxTokensPerBlock = 4;
constexpr int kFewTokens = 512;                   // a few for every multiprocessor
constexpr int64_t kMaxHidden = int64_t{1} << 28;  // exclusive: a row's bytes are 32 bits

// With more, ptxas has too few registers for the loads in flight, and loads one at a time.
template <int kPacks>
constexpr int kBlocksPerSm = kPacks == 1 ? 5 : 3;

// Whether a block does only the columns that its threads reach at once: for few tokens, which do not fill the device.
template <int kPacks>
constexpr bool kSliced = kPacks <= 2;

struct alignas(8) Term {
  uint32_t row;
  float weight;
};

// Neighbours, from an even place on: 16 bytes at a time.
template <int kCount>
struct alignas(kCount == 1 ? 8 : 16) Terms {
  Term terms[kCount];
};

// A warp lists the token's kept terms in column order. Returns how many there are.
__device__ int list_terms(const int32_t* rows, const float* weights, int columns, uint32_t y_rows, Term* terms) {
  const int lane = threadIdx.x % kWarp;
  int count = 0, first = 0;
#pragma unroll 1
  do {
    const int column = first + lane;
    const uint32_t row = column < columns ? rows[column] : UINT32_MAX;
    const float weight = column < columns ? weights[column] : 0.0f;  // beside the row, not after it
    const bool kept = row < y_rows;
    const unsigned all = __ballot_sync(0xffffffffu, kept);
    if (kept) terms[count + __popc(all & ((1u << lane) - 1))] = {row, weight};
    count += __popc(all);
    first += kWarp;
  } while (first < columns);
  return count;
}

// Of how many rows a thread loads its packs before it adds them.
template <int kPacks>
constexpr int kRowsAtOnce = kPacks <= 2 ? 4 : 2;

// The product in one instruction: the compiler would take it for one of 64 bits.
template <class T>
__device__ __forceinline__ T* row_of(T* first, uint32_t row, uint32_t row_bytes) {
  int64_t bytes;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(bytes) : "r"(row), "r"(row_bytes));
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(first) + bytes);
}

// A thread's columns: kPacks packs, a warp's width apart. `y`: at the first of them.
template <int kRows, class T, int kWidth, int kPacks>
__device__ __forceinline__ void add_rows(const T* y, uint32_t row_bytes, const Term* terms,
                                         float (&sums)[kPacks][kWidth]) {
  Pack<T, kWidth> values[kRows][kPacks];
  float weights[kRows];
  const Terms<kRows> own = *reinterpret_cast<const Terms<kRows>*>(terms);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const Term term = own.terms[i];
    const auto* row = reinterpret_cast<const Pack<T, kWidth>*>(row_of(y, term.row, row_bytes));
    weights[i] = term.weight;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) values[i][p] = row[p * kWarp];
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      float wide[kWidth];
      widen(values[i][p], wide);
#pragma unroll
      for (int c = 0; c < kWidth; ++c) sums[p][c] = fmaf(weights[i], wide[c], sums[p][c]);
    }
  }
}

template <class T, int kWidth, int kPacks>
__device__ __forceinline__ void add_terms(const T* y, uint32_t row_bytes, const Term* terms, int count, T* out) {
  constexpr int kRows = kRowsAtOnce<kPacks>;
  float sums[kPacks][kWidth] = {};
  int left = count;
#pragma unroll 1
  for (; left >= kRows; left -= kRows, terms += kRows) add_rows<kRows>(y, row_bytes, terms, sums);
  if (left > 0) {
    if (kRows > 2 && left >= 2) add_rows<2>(y, row_bytes, terms, sums), terms += 2;
    if (left % 2) add_rows<1>(y, row_bytes, terms, sums);
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    reinterpret_cast<Pack<T, kWidth>*>(out)[p * kWarp] = narrow(sums[p], T{});
  }
}

// Threads come as [tokens of the block][warps of the token], blocks as [tokens][slices of the columns]; shared memory
// is [tokens of the block][places], places being K rounded up to an even number. H is a multiple of kWidth, and, with
// several packs, of a warp's kWidth * kPacks.
template <class T, int kWidth, int kPacks>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<kPacks>)
    combine_kernel(const T* __restrict__ y,            // [N, H]
                   const int32_t* __restrict__ rows,   // [T, K]
                   const float* __restrict__ weights,  // [T, K]
                   int tokens, int columns, int places, uint32_t y_rows, int hidden,
                   T* __restrict__ out) {  // [T, H]
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ int counts[kMaxTokensPerBlock];
  Term* terms = reinterpret_cast<Term*>(shared) + threadIdx.y * places;
  const int token = blockIdx.x * blockDim.y + threadIdx.y;
  if (threadIdx.x < kWarp && token < tokens) {
    const int64_t pair = int64_t{token} * columns;
    const int count = list_terms(rows + pair, weights + pair, columns, y_rows, terms);
    if (threadIdx.x == 0) counts[threadIdx.y] = count;
  }
  __syncthreads();
  if (token >= tokens) return;
  const int count = counts[threadIdx.y];
  const int lane = threadIdx.x % kWarp;
  const uint32_t row_bytes = hidden * static_cast<uint32_t>(sizeof(T));
  unsigned column = (blockIdx.y * blockDim.x + threadIdx.x) * (kPacks * kWidth) - lane * ((kPacks - 1) * kWidth);
  for (; column < static_cast<unsigned>(hidden); column += blockDim.x * kPacks * kWidth) {
    add_terms<T, kWidth, kPacks>(y + column, row_bytes, terms, count, row_of(out + column, token, row_bytes));
    if (kSliced<kPacks>) break;
  }
}

template <class T, int kWidth, int kPacks>
void launch(const T* y, const int32_t* rows, const float* weights, int64_t tokens, int64_t columns, int64_t y_rows,
            int64_t hidden, T* out, cudaStream_t stream) {
  // As few threads per token as reach over a row at once, at least two warps.
  constexpr int kReach = kWidth * kPacks, kMost = kPacks == 2 ? kThreads / 2 : kThreads;
  int per_token = kMost;
  while (per_token > kThreads / kMaxTokensPerBlock && per_token / 2 * kReach >= hidden) per_token /= 2;
  const dim3 block(per_token, kMost / per_token);
  const int64_t slices = kSliced<kPacks> ? ceil_div(hidden, int64_t{per_token} * kReach) : 1;
  const dim3 grid(static_cast<unsigned>(ceil_div(tokens, block.y)), static_cast<unsigned>(slices));
  const int64_t places = columns + columns % 2;
  const size_t shared = block.y * places * sizeof(Term);
  const auto kernel = combine_kernel<T, kWidth, kPacks>;
  constexpr size_t kDefaultShared = 48 << 10;
  if (shared + sizeof(int) * kMaxTokensPerBlock > kDefaultShared) allow_all_shared(kernel, shared, "combine");
  kernel<<<grid, block, shared, stream>>>(y, rows, weights, static_cast<int>(tokens), static_cast<int>(columns),
                                          static_cast<int>(places), static_cast<uint32_t>(y_rows),
                                          static_cast<int>(hidden), out);
  check_cuda(cudaGetLastError(), "combine");
}

}  // namespace

template <class T>
void combine(const T* y, const int32_t* rows, const float* weights, int64_t tokens, int64_t columns, int64_t y_rows,
             int64_t hidden, T* out, cudaStream_t stream) {
  if (tokens == 0 || hidden == 0) return;
  if (hidden >= kMaxHidden) {
    throw std::invalid_argument("combine takes fewer than 2**28 columns on CUDA, got " + std::to_string(hidden));
  }
  constexpr int kWidth = 16 / sizeof(T);
  const uintptr_t places = reinterpret_cast<uintptr_t>(y) | reinterpret_cast<uintptr_t>(out);
  const bool aligned = places % 16 == 0 && hidden % kWidth == 0;
  const auto fits = [&](int packs) { return hidden % (kWarp * kWidth * packs) == 0; };
  // Four packs of two rows are as many loads on their way as two of four.
  const bool many = tokens >= kFewTokens || columns <= 2;
  const auto wide = many && fits(4) ? launch<T, kWidth, 4> : fits(2) ? launch<T, kWidth, 2> : launch<T, kWidth, 1>;
  const auto run = aligned ? wide : launch<T, 1, 1>;
  run(y, rows, weights, tokens, columns, y_rows, hidden, out, stream);
}

template void combine(const float*, const int32_t*, const float*, int64_t, int64_t, int64_t, int64_t, float*,
                      cudaStream_t);
template void combine(const __nv_bfloat16*, const int32_t*, const float*, int64_t, int64_t, int64_t, int64_t,
                      __nv_bfloat16*, cudaStream_t);
template void combine(const __half*, const int32_t*, const float*, int64_t, int64_t, int64_t, int64_t, __half*,
                      cudaStream_t);

}  // namespace capmoe::cuda
