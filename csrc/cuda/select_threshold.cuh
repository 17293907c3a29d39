// Where a budget is exceeded: the key that separates who stays from who goes, digit by digit from the highest.
#pragma once

#include "select_keys.cuh"
#include "select_team.cuh"

namespace capmoe::cuda {

// Of the `equal` pairs at the separating key, the first `take` stay.
struct Cut {
  int take, equal;

  __device__ bool settled() const { return take == equal; }
};

// The highest bin such that it and those above hold cut.take; leaves in the cut what that bin holds and must give.
template <class Team>
__device__ uint32_t choose_bin(const Team& team, Cut& cut) {
  constexpr int kEach = kBins / 32;
  int3 chosen{0, 0, 0};  // bin, take, equal
  if (team.rank() < 32) {
    // A lane adds up bins; of those of the lane that has the one that is sought, each lane then takes one.
    const auto* own = reinterpret_cast<const uint4*>(team.bins + kBins - kEach - lane_id() * kEach);
    const uint4 low = own[0], high = own[1];
    const int sum = static_cast<int>(low.x + low.y + low.z + low.w + high.x + high.y + high.z + high.w);
    const int through = warp_inclusive_scan(sum);
    const int lane = __ffs(__ballot_sync(kWholeWarp, cut.take <= through)) - 1;
    const int above = __shfl_sync(kWholeWarp, through - sum, lane);
    const int highest = kBins - 1 - lane * kEach, place = lane_id() % kEach;
    const int held = static_cast<int>(team.bins[highest - place]);
    const int within = above + warp_inclusive_scan<kEach>(held, kEach);
    const int sought = __ffs(__ballot_sync(kWholeWarp, cut.take <= within)) - 1;
    chosen.x = highest - sought;
    chosen.z = __shfl_sync(kWholeWarp, held, sought);
    chosen.y = cut.take - __shfl_sync(kWholeWarp, within, sought) + chosen.z;
  }
  chosen = team.broadcast(chosen);
  __syncwarp();  // the bins have been read
  cut = {chosen.y, chosen.z};
  return static_cast<uint32_t>(chosen.x);
}

// The key that separates the first cut.take of `keys`: where the cut is then settled those from it on stay, else those
// above it, and cut.take of those at it.
template <class Team, class Keys>
__device__ __forceinline__ uint32_t separate(const Team& team, const Keys& keys, Cut& cut) {
  const KeyBits bits = keys.bits();
  const uint32_t differing = bits.differing();
  if (differing == 0) return bits.all;
  int shift = max(24 - __clz(differing), 0);
  uint32_t known = shift == 24 ? 0u : ~0u << (shift + 8), value = bits.all & known;
#pragma unroll 1
  while (true) {
    for (int i = 4 * team.rank(); i < kBins; i += 4 * Team::kSize) {
      *reinterpret_cast<uint4*>(team.bins + i) = make_uint4(0, 0, 0, 0);
    }
    team.sync();
    keys.for_all([&](uint32_t key) {
      if (((key ^ value) & known) == 0) atomicAdd(&team.bins[key >> shift & (kBins - 1)], 1);
    });
    team.sync();
    value |= choose_bin(team, cut) << shift;
    if (cut.settled() || shift == 0) return value;
    known = ~0u << shift;
    shift = max(shift - 8, 0);
  }
}

// Of a word's asks, those above the separating key and those at it that a tie must part.
struct SplitWord {
  uint32_t above, equal;
};

template <class Keys>
__device__ __forceinline__ SplitWord split_word(const Keys& keys, int item, SlotWord asks, uint32_t value,
                                                bool settled) {
  SplitWord split{0, 0};
  if (settled) {
    keys.visit(item, asks, [&](uint32_t key, uint32_t bit) {
      if (key >= value) split.above |= bit;
    });
  } else {
    keys.visit(item, asks, [&](uint32_t key, uint32_t bit) {
      if (key > value) split.above |= bit;
      if (key == value) split.equal |= bit;
    });
  }
  return split;
}

// `bits` without all but its lowest `count`.
__device__ __forceinline__ uint32_t lowest(uint32_t bits, int count) {
  for (int surplus = __popc(bits) - max(count, 0); surplus > 0; --surplus) bits ^= 0x80000000u >> __clz(bits);
  return bits;
}

}  // namespace capmoe::cuda
