// dispatch: a warp copies a row, in the widest words that the rows' alignment allows.
#include <cstddef>
#include <cstdint>

#include "common.cuh"
#include "kernels.h"

namespace capmoe::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kRowsPerBlock = 8;  // a warp each: one row per block would spend its time on launching blocks
constexpr int kBlocksPerSm = 4;   // leaves a lane the registers for its loads

// Loads of a lane before its first store.
template <class Word>
constexpr int kInFlight = sizeof(Word) == 16 ? 8 : 4;

// Stores that make way first in the cache: a token's row will be read again by its other experts, x not so soon.
template <bool kWhole, class Word>
__device__ __forceinline__ void copy_part(const Word* from, Word* to, int64_t left) {
  Word words[kInFlight<Word>];
#pragma unroll
  for (int i = 0; i < kInFlight<Word>; ++i) {
    if (kWhole || kWarp * i < left) words[i] = from[kWarp * i];
  }
#pragma unroll
  for (int i = 0; i < kInFlight<Word>; ++i) {
    if (kWhole || kWarp * i < left) __stcs(to + kWarp * i, words[i]);
  }
}

template <class Word>
__global__ void __launch_bounds__(kWarp* kRowsPerBlock, kBlocksPerSm)
    dispatch_kernel(const Word* __restrict__ hidden_states,  // [T, words]
                    const int32_t* __restrict__ row_tokens,  // [N]
                    uint32_t tokens, int64_t rows, int64_t words,
                    Word* __restrict__ x) {  // [N, words]
  const int lane = threadIdx.x % kWarp;
  const int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarp;
  if (row >= rows) return;
  const uint32_t token = row_tokens[row];
  if (token >= tokens) return;
  const Word* from = hidden_states + token * words + lane;
  Word* to = x + row * words + lane;
  constexpr int64_t kPart = kWarp * kInFlight<Word>;
  int64_t left = words;
#pragma unroll 1
  for (; left >= kPart; left -= kPart, from += kPart, to += kPart) copy_part<true>(from, to, left);
  if (left > 0) copy_part<false>(from, to, left - lane);
}

template <class Word>
void launch(const void* hidden_states, const int32_t* row_tokens, int64_t tokens, int64_t rows, int64_t row_bytes,
            void* x, cudaStream_t stream) {
  const int64_t words = row_bytes / static_cast<int64_t>(sizeof(Word));
  const unsigned blocks = static_cast<unsigned>(ceil_div(rows, kRowsPerBlock));
  dispatch_kernel<<<blocks, kWarp * kRowsPerBlock, 0, stream>>>(static_cast<const Word*>(hidden_states), row_tokens,
                                                                static_cast<uint32_t>(tokens), rows, words,
                                                                static_cast<Word*>(x));
  check_cuda(cudaGetLastError(), "dispatch");
}

}  // namespace

void dispatch(const void* hidden_states, const int32_t* row_tokens, int64_t tokens, int64_t rows, int64_t row_bytes,
              void* x, cudaStream_t stream) {
  if (rows == 0 || row_bytes == 0) return;
  const uintptr_t places =
      reinterpret_cast<uintptr_t>(hidden_states) | reinterpret_cast<uintptr_t>(x) | static_cast<uintptr_t>(row_bytes);
  const auto run = places % 16 == 0  ? launch<uint4>
                   : places % 8 == 0 ? launch<uint2>
                   : places % 4 == 0 ? launch<uint32_t>
                                     : launch<uint16_t>;
  run(hidden_states, row_tokens, tokens, rows, row_bytes, x, stream);
}

}  // namespace capmoe::cuda
