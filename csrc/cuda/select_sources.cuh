// The keys of those who ask for a budget: listed once where they fit in the team's memory, else read anew each time.
#pragma once

#include "select_problem.cuh"
#include "select_team.cuh"

namespace capmoe::cuda {

// Items are words of the budget's rows, row after row, as slots has them from `base` on: who asks, and how many before.
// keys.load(place) fetches a key, or, where keys.made(), keys.make(item, bit) works it out. A key's place is
// 32 * item + bit or, where keys.on_cards(), on the item's card.
template <class Team, class Problem, class Keys>
class AskedKeys {
 public:
  __device__ AskedKeys(const Team& team, const Problem& problem, size_t base, int items, int asked, const Keys& keys)
      : team_(team), slots_(problem.slots + base), items_(items), asked_(asked), keys_(keys) {
    if (listed()) {
      list();
    } else {
      for_all([&](uint32_t key) { bits_.add(key); });
    }
    bits_ = team.combine(bits_);
  }

  // Of all keys.
  __device__ KeyBits bits() const { return bits_; }

  // Calls use(key) for all, each by one of the team.
  template <class Use>
  __device__ __forceinline__ void for_all(Use use) const {
    if (listed()) {
#pragma unroll 4
      for (int i = team_.rank(); i < asked_; i += Team::kSize) use(team_.list[i]);
    } else {
      for (int item = team_.rank(); item < items_; item += Team::kSize) {
        fetch(item, slots_[item].kept, [&](uint32_t key, uint32_t) { use(key); });
      }
    }
  }

  // Calls use(key, bit of the word) for those of one item, from the lowest on.
  template <class Use>
  __device__ __forceinline__ void visit(int item, SlotWord asks, Use use) const {
    if (listed()) {
      const uint32_t* key = team_.list + asks.before;
#pragma unroll 1
      for (uint32_t bits = asks.kept; bits != 0; bits &= bits - 1) use(*key++, bits & -bits);
    } else {
      fetch(item, asks.kept, use);
    }
  }

 private:
  static constexpr int kAtOnce = 4;  // loads in flight

  // A warp is not asked for more than it can list. A list first has places, of 32 bits.
  __device__ bool listed() const { return Team::kWarp || (asked_ <= team_.listed && items_ <= 1 << 26); }

  // The item's first key on its card.
  static __device__ size_t on_card(int item) { return size_t(item) * kCardWords + 1; }

  template <class Use>
  __device__ __forceinline__ void fetch(int item, uint32_t asks, Use use) const {
    if (keys_.made()) {
#pragma unroll 1
      for (uint32_t bits = asks; bits != 0; bits &= bits - 1) use(keys_.make(item, __ffs(bits) - 1), bits & -bits);
      return;
    }
    size_t place = on_card(item);
#pragma unroll 1
    for (uint32_t bits = asks; bits != 0;) {
      uint32_t loaded[kAtOnce], own[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        own[i] = bits & -bits;
        if (bits != 0) loaded[i] = keys_.load(keys_.on_cards() ? place++ : size_t(item) * 32 + __ffs(bits) - 1);
        bits ^= own[i];
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (own[i] != 0) use(loaded[i], own[i]);
      }
    }
  }

  // First whose keys they are, in a loop over each word's bits, then the keys, which keeps all threads busy.
  __device__ __forceinline__ void list() {
    for (int item = team_.rank(); item < items_; item += Team::kSize) {
      const SlotWord asks = slots_[item];
      uint32_t* to = team_.list + asks.before;
      if (keys_.on_cards()) {
        uint32_t place = static_cast<uint32_t>(on_card(item));
#pragma unroll 1
        for (const uint32_t* end = to + __popc(asks.kept); to != end;) *to++ = place++;
      } else {
#pragma unroll 1
        for (uint32_t bits = asks.kept; bits != 0; bits &= bits - 1) *to++ = item * 32 + __ffs(bits) - 1;
      }
    }
    team_.sync();
    if (keys_.made()) {
#pragma unroll 1
      for (int i = team_.rank(); i < asked_; i += Team::kSize)
        add(i, keys_.make(team_.list[i] / 32, team_.list[i] % 32));
    } else {
#pragma unroll 1
      for (int start = team_.rank(); start < asked_; start += kAtOnce * Team::kSize) load_listed(start);
    }
    team_.sync();
  }

  __device__ __forceinline__ void load_listed(int start) {
    uint32_t loaded[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int place = start + i * Team::kSize;
      if (place < asked_) loaded[i] = keys_.load(team_.list[place]);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int place = start + i * Team::kSize;
      if (place < asked_) add(place, loaded[i]);
    }
  }

  __device__ __forceinline__ void add(int place, uint32_t key) {
    bits_.add(key);
    team_.list[place] = key;
  }

  const Team& team_;
  const SlotWord* slots_;
  int items_, asked_;
  const Keys& keys_;
  KeyBits bits_;
};

}  // namespace capmoe::cuda
