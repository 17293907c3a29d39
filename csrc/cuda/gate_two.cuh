// Two columns of up to eight experts: a lane has a token, and a warp all that its block says of 32 tokens.
#pragma once

#include <cstdint>

#include "gate_layout.cuh"
#include "gate_marks.cuh"

namespace capmoe::cuda {

// Of the lanes whose `expert` is this lane's number; for lanes below 8, by a whole warp. `used`: the expert is one.
__device__ __forceinline__ uint32_t lanes_that_ask(int expert, bool used) {
  const int lane = threadIdx.x % 32;
  uint32_t same = __ballot_sync(kAllLanes, used);
#pragma unroll
  for (int bit = 0; bit < 3; ++bit) {
    const bool is_set = static_cast<int>(static_cast<unsigned>(expert) << (31 - bit)) < 0;
    same &= __ballot_sync(kAllLanes, is_set) ^ (lane & 1 << bit ? 0u : ~0u);
  }
  return same;
}

struct WriteTwoColumns {
  const Gate& config;
  const Marks& to;
  uint32_t* tile;  // [8][kTileWords]: in what gate_rows() has left
  int32_t* expert_ids;
  float *weights, *scores;

  // A token's columns; by a whole warp, whose lanes beyond the last token have no experts.
  __device__ __forceinline__ void operator()(bool is_token, const int (&expert)[2], const float (&weight)[2],
                                             const float (&score)[2]) const {
    const uint32_t token = blockIdx.x * kBlockTokens + threadIdx.x;
    if (is_token) {
      reinterpret_cast<int2*>(expert_ids)[token] = make_int2(expert[0], expert[1]);
      reinterpret_cast<float2*>(weights)[token] = make_float2(weight[0], weight[1]);
      if (scores != nullptr) reinterpret_cast<float2*>(scores)[token] = make_float2(score[0], score[1]);
    }
    if (to.counters != nullptr) mark(expert, score);
  }

 private:
  __device__ __forceinline__ void mark(const int (&expert)[2], const float (&score)[2]) const {
    clear_counters(to);
    const int experts = static_cast<int>(config.num_experts);
    const unsigned lane = threadIdx.x;
    const int words = (static_cast<int>(config.tokens) + kBlockTokens - 1) / kBlockTokens;
    const bool first_used = expert[0] < experts, second_used = expert[1] < experts;
    const uint32_t first = lanes_that_ask(expert[0], first_used);
    const uint32_t asks = first | lanes_that_ask(expert[1], second_used);
    const uint32_t at = lane * words + blockIdx.x;
    if (static_cast<int>(config.top_k) == 1 && static_cast<int>(lane) < experts) to.top[at] = first;
    if (to.cards != nullptr) {
      clear_tile();
      add_key(asks, first_used, expert[0], score[0]);
      add_key(asks, second_used, expert[1], score[1]);
      __syncwarp();
      const uint32_t of_card = __shfl_sync(kAllLanes, asks, lane / 4);
      if (static_cast<int>(lane) < 4 * experts) write_card(to, tile, lane / 4, lane % 4, words, of_card);
      return;
    }
    if (static_cast<int>(lane) < experts) to.asks[at] = asks;
    if (to.keys == nullptr) return;
    if (first_used) to.keys[key_place(expert[0])] = key_of(score[0]);
    if (second_used) to.keys[key_place(expert[1])] = key_of(score[1]);
  }

  // Of eight cards, though there may be fewer.
  __device__ __forceinline__ void clear_tile() const {
    constexpr int kParts = 8 * kTileWords / 4;
#pragma unroll
    for (int i = 0; i < kParts; i += 32) {
      if (i + 32 <= kParts || threadIdx.x < kParts % 32) {
        reinterpret_cast<uint4*>(tile)[i + threadIdx.x] = make_uint4(0, 0, 0, 0);
      }
    }
    __syncwarp();
  }

  // `asks`: of expert `lane`.
  __device__ __forceinline__ void add_key(uint32_t asks, bool used, int expert, float score) const {
    const int before = __popc(__shfl_sync(kAllLanes, asks, expert) & ((1u << threadIdx.x) - 1));
    if (used) tile[expert * kTileWords + 1 + before] = key_of(score);
  }

  __device__ __forceinline__ uint32_t key_place(int expert) const {
    return static_cast<uint32_t>(expert) * static_cast<uint32_t>(config.tokens) + blockIdx.x * kBlockTokens +
           threadIdx.x;
  }
};

}  // namespace capmoe::cuda
