// One expert over capacity, where nothing but the policy ranks and its keys fit in shared memory: the usual case.
#pragma once

#include "select_threshold.cuh"

namespace capmoe::cuda {

// The keys of all who ask, in token order: a thread lists those of its words.
template <class Team, class Problem>
__device__ void list_keys(const Team& team, const Problem& problem, int expert) {
  constexpr int kAtOnce = 4;  // loads in flight
  for (int word = team.rank(); word < problem.words; word += Team::kSize) {
    const SlotWord asks = problem.slots[problem.word(expert, word)];
    uint32_t* to = team.list + asks.before;
    for (uint32_t bits = asks.kept; bits != 0;) {
      uint32_t keys[kAtOnce];
      int count = 0;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (bits == 0) break;
        keys[i] = policy_key(problem, word * 32 + __ffs(bits) - 1, expert);
        bits &= bits - 1;
        ++count;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (i < count) to[i] = keys[i];
      }
      to += count;
    }
  }
  team.sync();
}

// `bits` without all but its lowest `count`.
__device__ __forceinline__ uint32_t lowest(uint32_t bits, int count) {
  for (int surplus = __popc(bits) - max(count, 0); surplus > 0; --surplus) bits ^= 0x80000000u >> __clz(bits);
  return bits;
}

// Rows of a few words leave most lanes without one: a lane is a token of each word in turn.
constexpr int kFewWords = 8;

template <class Problem>
__device__ void list_keys_of_few_words(const Team<1>& warp, const Problem& problem, int expert) {
  const uint32_t own = 1u << lane_id();
#pragma unroll 4
  for (int word = 0; word < problem.words; ++word) {
    const SlotWord asks = problem.slots[problem.word(expert, word)];
    if ((asks.kept & own) == 0) continue;
    warp.list[asks.before + __popc(asks.kept & (own - 1))] = policy_key(problem, word * 32 + lane_id(), expert);
  }
  warp.sync();
}

// What separates the first cut.take of the listed keys.
template <class Team>
__device__ KeyPrefix<uint32_t> separate(const Team& team, int asked, Cut& cut) {
  KeyPrefix<uint32_t> prefix;
#pragma unroll 1
  for (int shift = 24; shift >= 0 && !cut.settled(); shift -= 8) {
    const uint32_t digit = next_digit(team, cut, [&] {
      for (int i = team.rank(); i < asked; i += Team::kSize) {
        const uint32_t key = team.list[i];
        if (prefix.contains(key)) atomicAdd(&team.bins[key >> shift & (kBins - 1)], 1);
      }
    });
    prefix.add(digit, shift);
  }
  return prefix;
}

// The same for up to 64 keys, each against all others: their verdicts, 1 or 0, take their places in the list.
constexpr int kFewKeys = 64;

__device__ inline KeyPrefix<uint32_t> judge_few(const Team<1>& warp, int asked, Cut& cut) {
  const int low = lane_id(), high = low + 32;
  const uint32_t low_key = low < asked ? warp.list[low] : 0, high_key = high < asked ? warp.list[high] : 0;
  int low_rank = 0, high_rank = 0;
#pragma unroll 8
  for (int i = 0; i < asked; ++i) {
    const uint32_t key = warp.list[i];
    low_rank += key > low_key || (key == low_key && i < low);
    high_rank += key > high_key || (key == high_key && i < high);
  }
  warp.sync();
  if (low < asked) warp.list[low] = low_rank < cut.take;
  if (high < asked) warp.list[high] = high_rank < cut.take;
  warp.sync();
  cut.equal = cut.take;  // all ones stay
  KeyPrefix<uint32_t> ones;
  ones.value = 1;
  ones.mask = ~0u;
  return ones;
}

// Of a word's asks, those above the separating key and those at it.
struct SplitWord {
  uint32_t above, equal;
};

template <class Team>
__device__ __forceinline__ SplitWord split_asks(const Team& team, SlotWord asks, const KeyPrefix<uint32_t>& prefix) {
  SplitWord split{0, 0};
  const uint32_t* keys = team.list + asks.before;
  for (uint32_t bits = asks.kept; bits != 0; bits &= bits - 1) {
    const uint32_t key = *keys++ & prefix.mask;
    if (key > prefix.value) split.above |= bits & -bits;
    if (key == prefix.value) split.equal |= bits & -bits;
  }
  return split;
}

template <class Team, class Problem>
__device__ void rewrite_slots(const Team& team, const Problem& problem, int expert, const Cut& cut,
                              const KeyPrefix<uint32_t>& prefix) {
  int ties = 0, total = 0;
  for (int start = 0; start < problem.words; start += Team::kSize) {
    const int word = start + team.rank();
    const size_t at = problem.word(expert, word);
    const SlotWord asks = word < problem.words ? problem.slots[at] : SlotWord{0, 0};
    SplitWord split = split_asks(team, asks, prefix);
    if (!cut.settled()) {
      const int before = team.exclusive_scan(__popc(split.equal), &ties);
      split.equal = lowest(split.equal, cut.take - before);
    }
    const uint32_t kept = split.above | split.equal;
    const int before = team.exclusive_scan(__popc(kept), &total);
    if (word >= problem.words) continue;
    problem.slots[at] = {kept, static_cast<uint32_t>(before)};
    problem.marks.asks[at] = kept;
  }
}

template <class Problem>
__device__ void rewrite_slots_of_few_words(const Team<1>& warp, const Problem& problem, int expert, Cut cut,
                                           const KeyPrefix<uint32_t>& prefix) {
  const uint32_t own = 1u << lane_id();
  uint32_t total = 0;
#pragma unroll 1
  for (int word = 0; word < problem.words; ++word) {
    const size_t at = problem.word(expert, word);
    const SlotWord asks = problem.slots[at];
    const bool asking = (asks.kept & own) != 0;
    const uint32_t key = asking ? warp.list[asks.before + __popc(asks.kept & (own - 1))] & prefix.mask : 0;
    const uint32_t above = __ballot_sync(kWholeWarp, asking && key > prefix.value);
    uint32_t equal = __ballot_sync(kWholeWarp, asking && key == prefix.value);
    if (!cut.settled()) {
      const int ties = __popc(equal);
      equal = lowest(equal, cut.take);
      cut.take -= ties;
      cut.equal -= ties;
    }
    const uint32_t kept = above | equal;
    warp.sync();  // all lanes have read the slot
    if (lane_id() == 0) {
      problem.slots[at] = {kept, total};
      problem.marks.asks[at] = kept;
    }
    total += __popc(kept);
  }
}

// Rewrites slots, and clears asks: `budget` > 0 of the `asked` stay.
template <class Team, class Problem>
__device__ void keep_best(const Team& team, const Problem& problem, int expert, int budget, int asked) {
  Cut cut{budget, asked};
  if constexpr (Team::kWarp) {
    if (problem.words <= kFewWords) {
      list_keys_of_few_words(team, problem, expert);
      const auto prefix = asked <= kFewKeys ? judge_few(team, asked, cut) : separate(team, asked, cut);
      rewrite_slots_of_few_words(team, problem, expert, cut, prefix);
      team.sync();
      return;
    }
  }
  list_keys(team, problem, expert);
  const auto prefix = separate(team, asked, cut);
  rewrite_slots(team, problem, expert, cut, prefix);
  team.sync();
}

}  // namespace capmoe::cuda
