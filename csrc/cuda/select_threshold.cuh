// Where a budget is exceeded: the key that separates who stays from who goes, digit by digit from the highest.
#pragma once

#include "select_keys.cuh"
#include "select_team.cuh"

namespace capmoe::cuda {

// The bits of the separating key that are known.
template <class Key>
struct KeyPrefix {
  Key value = 0, mask = 0;

  __device__ bool contains(Key key) const { return ((key ^ value) & mask) == 0; }
  __device__ void add(uint32_t digit, int shift) {
    value |= Key{digit} << shift;
    mask |= Key{kBins - 1} << shift;
  }
};

// Of the `equal` pairs with the known prefix, the first `take` stay.
struct Cut {
  int take, equal;

  __device__ bool settled() const { return take == equal; }
};

// The highest bin such that it and those above hold cut.take; leaves in the cut what that bin holds and must give.
template <class Team>
__device__ uint32_t choose_bin(const Team& team, Cut& cut) {
  int3 chosen{0, 0, 0};  // bin, take, equal
  int lane = -1;
  if (team.rank() < 32) {
    constexpr int kEach = kBins / 32;
    const int highest = kBins - 1 - team.rank() * kEach;
    int held[kEach], sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) sum += held[i] = static_cast<int>(team.bins[highest - i]);
    const int through = warp_inclusive_scan(sum);
    lane = __ffs(__ballot_sync(kWholeWarp, cut.take <= through)) - 1;
    int above = through - sum;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (above < cut.take) chosen = {highest - i, cut.take - above, held[i]};
      above += held[i];
    }
  }
  chosen = team.broadcast(chosen, lane);
  __syncwarp();  // the bins have been read
  cut = {chosen.y, chosen.z};
  return static_cast<uint32_t>(chosen.x);
}

// The next digit of the separating key: count() counts the digits of the pairs that share all that is known.
template <class Team, class Count>
__device__ uint32_t next_digit(const Team& team, Cut& cut, Count count) {
  for (int i = team.rank(); i < kBins; i += Team::kSize) team.bins[i] = 0;
  team.sync();
  count();
  team.sync();
  return choose_bin(team, cut);
}

}  // namespace capmoe::cuda
