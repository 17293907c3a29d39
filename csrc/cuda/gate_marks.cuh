// What a block of the gate says of its 32 tokens to select: it owns a word of every expert's bit row, or a card.
#pragma once

#include <cstdint>

#include "../options.h"
#include "gate_wide.cuh"
#include "kernels.h"

namespace capmoe::cuda {

constexpr int kBlockTokens = 32;

// A card in shared memory: the asks, then keys. As short as 16 bytes at a time allow.
constexpr int kTileWords = 36;
static_assert(kTileWords > kBlockTokens && kCardWords >= kTileWords);

// order_key() of a score, which is not negative.
__device__ __forceinline__ uint32_t key_of(float score) { return __float_as_uint(score) | 0x80000000u; }

// Copies an expert's card, by four lanes, `quarter` of which this one is.
__device__ __forceinline__ void write_card(const Marks& to, const uint32_t* tile, unsigned expert, unsigned quarter,
                                           int words, uint32_t asks) {
  const int last = __popc(asks);
  const size_t card = expert * words + blockIdx.x;
  auto* out = reinterpret_cast<uint4*>(to.cards + card * kCardWords) + quarter;
  const auto* own = reinterpret_cast<const uint4*>(tile + expert * kTileWords) + quarter;
#pragma unroll 1
  for (int place = 4 * quarter; place <= last; place += 16) {
    uint4 part = *own;
    if (place == 0) part.x = asks;
    *out = part;
    own += 4;
    out += 4;
  }
}

// The block's marks in shared memory, and where they go. Indices fit 32 bits: see gate().
struct BlockMarks {
  const Marks& to;
  int tokens, columns, experts, local_start, local_stop;
  uint32_t* asks;  // [E]
  uint32_t* top;   // [E]
  uint32_t* keys;  // [local experts][33], so that a column of it has no bank conflict; null: not gathered
  uint2* pairs;    // [32][K], where there are cards: a key, and whose it is
  uint32_t* tile;  // [E][kTileWords], where there are cards: in what gate_rows() has left

  __device__ __forceinline__ bool wanted() const { return to.counters != nullptr; }

  __device__ __forceinline__ void clear() const {
    const int words = to.top == nullptr ? experts : 2 * experts;
#pragma unroll 1
    for (int i = threadIdx.x; i < words; i += blockDim.x) asks[i] = 0;
    __syncthreads();
  }

  // That a token, `bit` of the block's, asks for an expert, if it is one.
  __device__ __forceinline__ void add(int bit, int column, bool is_top, int expert, float score) const {
    if (to.cards != nullptr) pairs[bit * columns + column] = make_uint2(key_of(score), expert | bit << 16);
    if (expert == experts) return;
    atomicOr(asks + expert, 1u << bit);
    if (to.top != nullptr && is_top) atomicOr(top + expert, 1u << bit);
    if (to.keys == nullptr) return;
    if (keys != nullptr && expert >= local_start && expert < local_stop) {
      keys[(expert - local_start) * (kBlockTokens + 1) + bit] = key_of(score);
    } else {
      to.keys[static_cast<uint32_t>(expert) * tokens + blockIdx.x * kBlockTokens + bit] = key_of(score);
    }
  }

  // Everything that has been added, in whole words; `here` tokens are the block's.
  __device__ __forceinline__ void write(int here) const {
    clear_counters(to);
    __syncthreads();
    const uint32_t words = (tokens + kBlockTokens - 1) / kBlockTokens;
    if (to.top != nullptr) write_words(top, to.top, words);
    if (to.cards != nullptr) return fill_cards(here, words);
    write_words(asks, to.asks, words);
    if (keys != nullptr) write_keys();
  }

 private:
  __device__ __forceinline__ void write_words(const uint32_t* from, uint32_t* rows, uint32_t words) const {
#pragma unroll 1
    for (int e = threadIdx.x; e < experts; e += blockDim.x) rows[e * words + blockIdx.x] = from[e];
  }

  // The keys that were gathered, an expert's 32 tokens at a time.
  __device__ __forceinline__ void write_keys() const {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int e = local_start + threadIdx.x / 32; e < local_stop; e += blockDim.x / 32) {
      if ((asks[e] >> lane & 1) == 0) continue;
      const uint32_t key = keys[(e - local_start) * (kBlockTokens + 1) + lane];
      to.keys[static_cast<uint32_t>(e) * tokens + blockIdx.x * kBlockTokens + lane] = key;
    }
  }

  __device__ __forceinline__ void fill_cards(int here, int words) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < experts * (kTileWords / 4); i += blockDim.x) {
      reinterpret_cast<uint4*>(tile)[i] = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < here * columns; i += blockDim.x) {
      const uint2 pair = pairs[i];
      const int expert = pair.y & 0xffff, bit = pair.y >> 16;
      if (expert < experts) tile[expert * kTileWords + 1 + __popc(asks[expert] & ((1u << bit) - 1))] = pair.x;
    }
    __syncthreads();
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < 4 * experts; i += blockDim.x) {
      write_card(to, tile, i / 4, i % 4, words, asks[i / 4]);
    }
  }
};

}  // namespace capmoe::cuda
