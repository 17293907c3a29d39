// The competition of a row's lanes: each holds its experts sorted, and only the
// lanes' best meet.
#pragma once

#include <cstdint>

#include "gate_layout.cuh"

namespace capmoe::cuda {

// A lane's entries, in shared memory but for the best; an end mark comes last.
// `lists` is the warp's: [kPerLane][32] entries.
template <class Layout, class Entry>
class Queue {
 public:
  __device__ __forceinline__ Queue(void* lists, const Entry (&sorted)[Layout::kPerLane])
      : next_(static_cast<Entry*>(lists) + Layout::lane()), head_(sorted[0]) {
#pragma unroll
    for (int i = 1; i < Layout::kPerLane; ++i) next_[32 * (i - 1)] = sorted[i];
    next_[32 * (Layout::kPerLane - 1)] = Entry::none();
  }

  // Moves the row's best entries, best first, to columns [from, to) of 8 bytes
  // each. kMayEnd: there may be fewer, then the rest get none.
  template <bool kMayEnd>
  __device__ __forceinline__ void take(int from, int to, uint2* columns) {
    const uint32_t lower = Layout::lower_lanes();
#pragma unroll 2
    for (int j = from; j < to; ++j) {
      const uint32_t best = Layout::largest(head_.key());
      bool mine = head_.key() == best;
      if (kMayEnd || !Entry::kUnique) {
        const uint32_t tied = __ballot_sync(kAllLanes, mine);
        mine = mine && (tied & lower) == 0;
      }
      if (mine) {
        *reinterpret_cast<Entry*>(columns + j) = head_;
        if (!kMayEnd || best != 0) {
          head_ = *next_;
          next_ += 32;
        }
      }
    }
  }

  // Leaves only the experts in [start, stop).
  __device__ __forceinline__ void keep_range(int start, int stop) {
    if (head_.key() == 0) return;
    const Entry* read = next_;
    Entry* write = next_;
    bool found = false;  // the first becomes the head
    for (Entry entry = head_; entry.key() != 0; entry = *read, read += 32) {
      if (entry.expert() < start || entry.expert() >= stop) continue;
      if (found) {
        *write = entry;
        write += 32;
      } else {
        head_ = entry;
        found = true;
      }
    }
    *write = Entry::none();
    if (!found) head_ = Entry::none();
  }

 private:
  Entry* next_;
  Entry head_;
};

}  // namespace capmoe::cuda
