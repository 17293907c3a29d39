// The competition of a row's lanes: each holds its experts sorted, and only the lanes' best meet.
#pragma once

#include <cstdint>

#include "gate_layout.cuh"

namespace capmoe::cuda {

// A lane's entries, best first and an end mark last, in the warp's shared memory: `lists` is [kPerLane + 1][32].
template <class Layout, class Entry>
class Queue {
 public:
  __device__ __forceinline__ Queue(void* lists, const Entry (&sorted)[Layout::kPerLane])
      : next_(static_cast<Entry*>(lists) + Layout::lane()), head_(sorted[0]) {
#pragma unroll
    for (int i = 0; i < Layout::kPerLane; ++i) next_[32 * i] = sorted[i];
    next_[32 * Layout::kPerLane] = Entry::none();
  }

  // Moves the row's best entries, best first, to columns [from, to) of 8 bytes each. kMayEnd: there may be fewer, then
  // the rest get none.
  template <bool kMayEnd>
  __device__ __forceinline__ void take(int from, int to, uint2* columns) {
    const uint32_t lower = Layout::lower_lanes();
    Entry* out = reinterpret_cast<Entry*>(columns + from);
    constexpr int kStride = sizeof(uint2) / sizeof(Entry);
#pragma unroll 4
    for (int j = from; j < to; ++j, out += kStride) {
      const uint32_t best = Layout::largest(head_.key());
      bool mine = head_.key() == best;
      if (kMayEnd || !Entry::kUnique) {
        const uint32_t tied = __ballot_sync(kAllLanes, mine);
        mine = mine && (tied & lower) == 0;
      }
      if (mine) *out = head_;
      if (mine && (!kMayEnd || best != 0)) next_ += 32;
      head_ = *next_;  // by all lanes: cheaper than to ask who won
    }
  }

  // Leaves only the experts in [start, stop).
  __device__ __forceinline__ void keep_range(int start, int stop) {
    Entry* write = next_;
    for (const Entry* read = next_; read->key() != 0; read += 32) {
      if (read->expert() < start || read->expert() >= stop) continue;
      *write = *read;
      write += 32;
    }
    *write = Entry::none();
    head_ = *next_;
  }

 private:
  Entry* next_;
  Entry head_;
};

}  // namespace capmoe::cuda
