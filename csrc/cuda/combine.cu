// combine: threads own columns of a token and walk its rows, in the order of its candidates.
#include <cstddef>
#include <cstdint>

#include "common.cuh"
#include "kernels.h"

namespace capmoe::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kMaxTokensPerBlock = 4;
constexpr int kFewTokens = 512;  // a few for every multiprocessor

// With more, ptxas has too few registers for the loads in flight, and loads one at a time.
template <int kPacks>
constexpr int kBlocksPerSm = kPacks == 1 ? 5 : 3;

// What a thread adds at a time: 16 bytes where the rows are aligned to that, else one element.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T values[kWidth];
};

struct alignas(16) Term {
  int64_t bytes;  // from y to the row
  float weight;
};

template <int kWidth>
__device__ __forceinline__ void widen(const Pack<float, kWidth>& in, float (&out)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) out[i] = in.values[i];
}

// The upper half of a float is a bfloat16: one instruction each, where the library's conversions take more.
template <int kWidth>
__device__ __forceinline__ void widen(const Pack<__nv_bfloat16, kWidth>& in, float (&out)[kWidth]) {
  if constexpr (kWidth == 1) {
    out[0] = __bfloat162float(in.values[0]);
  } else {
    const auto& pairs = reinterpret_cast<const uint32_t (&)[kWidth / 2]>(in);
#pragma unroll
    for (int i = 0; i < kWidth; i += 2) {
      asm("shl.b32 %0, %1, 16;" : "=f"(out[i]) : "r"(pairs[i / 2]));
      asm("and.b32 %0, %1, 0xffff0000;" : "=f"(out[i + 1]) : "r"(pairs[i / 2]));
    }
  }
}

template <int kWidth>
__device__ __forceinline__ void widen(const Pack<__half, kWidth>& in, float (&out)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) out[i] = __half2float(in.values[i]);
}

template <int kWidth>
__device__ __forceinline__ Pack<float, kWidth> narrow(const float (&in)[kWidth], float) {
  Pack<float, kWidth> out;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) out.values[i] = in[i];
  return out;
}

template <int kWidth>
__device__ __forceinline__ Pack<__nv_bfloat16, kWidth> narrow(const float (&in)[kWidth], __nv_bfloat16) {
  Pack<__nv_bfloat16, kWidth> out;
  if constexpr (kWidth == 1) {
    out.values[0] = __float2bfloat16_rn(in[0]);
  } else {
    auto& pairs = reinterpret_cast<__nv_bfloat162(&)[kWidth / 2]>(out);
#pragma unroll
    for (int i = 0; i < kWidth; i += 2) pairs[i / 2] = __floats2bfloat162_rn(in[i], in[i + 1]);
  }
  return out;
}

template <int kWidth>
__device__ __forceinline__ Pack<__half, kWidth> narrow(const float (&in)[kWidth], __half) {
  Pack<__half, kWidth> out;
  if constexpr (kWidth == 1) {
    out.values[0] = __float2half_rn(in[0]);
  } else {
    auto& pairs = reinterpret_cast<__half2(&)[kWidth / 2]>(out);
#pragma unroll
    for (int i = 0; i < kWidth; i += 2) pairs[i / 2] = __floats2half2_rn(in[i], in[i + 1]);
  }
  return out;
}

// A warp lists the token's kept terms in column order. Returns how many there are.
__device__ int list_terms(const int32_t* rows, const float* weights, int columns, uint32_t y_rows, int64_t row_bytes,
                          Term* terms) {
  const int lane = threadIdx.x % kWarp;
  int count = 0;
#pragma unroll 1
  for (int first = 0; first < columns; first += kWarp) {
    const int column = first + lane;
    const uint32_t row = column < columns ? rows[column] : UINT32_MAX;
    const float weight = column < columns ? weights[column] : 0.0f;  // beside the row, not after it
    const bool kept = row < y_rows;
    const unsigned all = __ballot_sync(0xffffffffu, kept);
    if (kept) terms[count + __popc(all & ((1u << lane) - 1))] = {row * row_bytes, weight};
    count += __popc(all);
  }
  return count;
}

// A thread's columns: kPacks packs, a warp's width apart.
template <int kRows, class T, int kWidth, int kPacks>
__device__ __forceinline__ void add_rows(const T* y, const Term* terms, float (&sums)[kPacks][kWidth]) {
  Pack<T, kWidth> values[kRows][kPacks];
  float weights[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const Term term = terms[i];
    const auto* row = reinterpret_cast<const Pack<T, kWidth>*>(reinterpret_cast<const char*>(y) + term.bytes);
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
__device__ __forceinline__ void add_terms(const T* y, const Term* terms, int count, T* out) {
  constexpr int kRows = kPacks == 1 ? 4 : 2;  // rows of which it loads before it adds
  float sums[kPacks][kWidth] = {};
  int term = 0;
#pragma unroll 1
  for (; term + kRows <= count; term += kRows) add_rows<kRows>(y, terms + term, sums);
  if (kRows > 2 && count - term >= 2) add_rows<2>(y, terms + term, sums), term += 2;
  if (count > term) add_rows<1>(y, terms + term, sums);
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    reinterpret_cast<Pack<T, kWidth>*>(out)[p * kWarp] = narrow(sums[p], T{});
  }
}

// Threads come as [tokens of the block][warps of the token], blocks as [tokens][slices of the columns]; shared memory
// is [tokens of the block][K] terms. H is a multiple of kWidth, and, with several packs, of a warp's kWidth * kPacks.
template <class T, int kWidth, int kPacks>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<kPacks>)
    combine_kernel(const T* __restrict__ y,            // [N, H]
                   const int32_t* __restrict__ rows,   // [T, K]
                   const float* __restrict__ weights,  // [T, K]
                   int tokens, int columns, uint32_t y_rows, int hidden,
                   T* __restrict__ out) {  // [T, H]
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ int counts[kMaxTokensPerBlock];
  Term* terms = reinterpret_cast<Term*>(shared) + threadIdx.y * columns;
  const int token = blockIdx.x * blockDim.y + threadIdx.y;
  if (threadIdx.x < kWarp && token < tokens) {
    const int64_t pair = int64_t{token} * columns;
    const int count = list_terms(rows + pair, weights + pair, columns, y_rows, int64_t{hidden} * sizeof(T), terms);
    if (threadIdx.x == 0) counts[threadIdx.y] = count;
  }
  __syncthreads();
  if (token >= tokens) return;
  const int count = counts[threadIdx.y];
  const int lane = threadIdx.x % kWarp;
  T* const to = out + int64_t{token} * hidden;
  int column = (blockIdx.y * blockDim.x + threadIdx.x - lane) * kPacks * kWidth + lane * kWidth;
  for (; column < hidden; column += gridDim.y * blockDim.x * kPacks * kWidth) {
    add_terms<T, kWidth, kPacks>(y + column, terms, count, to + column);
  }
}

template <class T, int kWidth, int kPacks>
void launch(const T* y, const int32_t* rows, const float* weights, int64_t tokens, int64_t columns, int64_t y_rows,
            int64_t hidden, T* out, cudaStream_t stream) {
  // As few threads per token as reach over a row at once, at least two warps.
  constexpr int kReach = kWidth * kPacks;
  int per_token = kThreads;
  while (per_token > kThreads / kMaxTokensPerBlock && per_token / 2 * kReach >= hidden) per_token /= 2;
  const dim3 block(per_token, kThreads / per_token);
  // With one pack a thread, a block does the columns that its threads reach, for tokens alone do not fill the device.
  const int64_t slices = kPacks == 1 ? ceil_div(hidden, int64_t{per_token} * kReach) : 1;
  const dim3 grid(static_cast<unsigned>(ceil_div(tokens, block.y)), static_cast<unsigned>(slices));
  const size_t shared = block.y * columns * sizeof(Term);
  const auto kernel = combine_kernel<T, kWidth, kPacks>;
  constexpr size_t kDefaultShared = 48 << 10;
  if (shared + sizeof(int) * kMaxTokensPerBlock > kDefaultShared) allow_all_shared(kernel, shared, "combine");
  kernel<<<grid, block, shared, stream>>>(y, rows, weights, static_cast<int>(tokens), static_cast<int>(columns),
                                          static_cast<uint32_t>(y_rows), static_cast<int>(hidden), out);
  check_cuda(cudaGetLastError(), "combine");
}

}  // namespace

template <class T>
void combine(const T* y, const int32_t* rows, const float* weights, int64_t tokens, int64_t columns, int64_t y_rows,
             int64_t hidden, T* out, cudaStream_t stream) {
  if (tokens == 0 || hidden == 0) return;
  constexpr int kWidth = 16 / sizeof(T);
  const uintptr_t places = reinterpret_cast<uintptr_t>(y) | reinterpret_cast<uintptr_t>(out);
  const bool aligned = places % 16 == 0 && hidden % kWidth == 0;
  const bool many = tokens >= kFewTokens && hidden % (kWarp * kWidth * 4) == 0;
  const auto wide = many ? launch<T, kWidth, 4> : launch<T, kWidth, 1>;
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
