// Numbers the set bits of experts' rows: slots, and how many there are.
#pragma once

#include "select_problem.cuh"
#include "select_team.cuh"

namespace capmoe::cuda {

// What an expert's row adds up to.
struct RowCounts {
  int asks, demand;
};

// Consecutive words of a row; 0 beyond its end.
template <int kWords>
__device__ __forceinline__ void load_words(const uint32_t* row, int start, int words, uint32_t (&out)[kWords]) {
  if (kWords == 4 && words % 4 == 0) {
    const uint4 all = start < words ? *reinterpret_cast<const uint4*>(row + start) : make_uint4(0, 0, 0, 0);
    const uint32_t each[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
    for (int i = 0; i < kWords; ++i) out[i] = each[i % 4];
    return;
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) out[i] = start + i < words ? row[start + i] : 0;
}

// Who asks for an expert, in consecutive words. `expert` -1: none.
template <int kWords, class Problem>
__device__ __forceinline__ void load_asks(const Problem& problem, int expert, int start, uint32_t (&asks)[kWords]) {
  const size_t row = problem.word(max(expert, 0), 0);
  const int words = expert < 0 ? 0 : problem.words;
  if (!problem.on_cards()) return load_words(problem.marks.asks + row, start, words, asks);
  const uint32_t* card = problem.marks.cards + (row + start) * kCardWords;
#pragma unroll
  for (int i = 0; i < kWords; ++i) asks[i] = start + i < words ? card[i * kCardWords] : 0;
}

__device__ __forceinline__ void store_slots(SlotWord* row, int start, int words, const uint32_t (&kept)[4],
                                            int before) {
  SlotWord all[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    all[i] = {kept[i], static_cast<uint32_t>(before)};
    before += __popc(kept[i]);
  }
  if (words % 4 == 0) {
    if (start >= words) return;
    auto* to = reinterpret_cast<uint4*>(row + start);
    to[0] = make_uint4(all[0].kept, all[0].before, all[1].kept, all[1].before);
    to[1] = make_uint4(all[2].kept, all[2].before, all[3].kept, all[3].before);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (start + i < words) row[start + i] = all[i];
  }
}

// Leaves padding out of a row's words, and out of its asks. Rerouting adds the asks of each round itself.
template <int kWords, class Problem>
__device__ __forceinline__ void settle_asks(const Problem& problem, int expert, int start, uint32_t (&asks)[kWords]) {
  uint32_t* row = problem.marks.asks + problem.word(expert, 0);
  if (problem.masked()) {
    uint32_t real[kWords];
    load_words(problem.mask_words, start, problem.words, real);
#pragma unroll
    for (int i = 0; i < kWords; ++i) asks[i] &= real[i];
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    if (start + i < problem.words) row[start + i] = problem.reroutes() ? 0 : asks[i];
  }
}

// Lanes that share an expert's row where each takes four words at a time: the logarithm of a power of two.
__device__ __forceinline__ int row_lanes_log(int words) {
  return words <= 4 ? 0 : words > 64 ? 5 : 30 - __clz(words - 1);
}

// One row by `lanes` consecutive lanes of the warp; other lanes do theirs. `expert` -1: none.
template <class Problem>
__device__ RowCounts number_row(const Problem& problem, int expert, int lanes, bool first_time) {
  const int place = lane_id() & (lanes - 1), words = problem.words;
  const size_t row = problem.word(max(expert, 0), 0);
  const bool settles = first_time && (problem.masked() || problem.reroutes());
  int total = 0, demand = 0;
  for (int start = 4 * place; start - 4 * place < words; start += 4 * lanes) {
    uint32_t asks[4], top[4];
    load_asks(problem, expert, start, asks);
    if (settles && expert >= 0) settle_asks(problem, expert, start, asks);
    const int held = __popc(asks[0]) + __popc(asks[1]) + __popc(asks[2]) + __popc(asks[3]);
    const int through = warp_inclusive_scan(held, lanes);
    if (expert >= 0) store_slots(problem.slots + row, start, words, asks, total + through - held);
    total += __shfl_sync(kWholeWarp, through, lanes - 1, lanes);
    if (first_time && problem.marks.top != nullptr) {
      load_words(problem.marks.top + row, start, expert < 0 ? 0 : words, top);
      demand +=
          __popc(asks[0] & top[0]) + __popc(asks[1] & top[1]) + __popc(asks[2] & top[2]) + __popc(asks[3] & top[3]);
    }
  }
  if (problem.marks.top == nullptr) return {total, total};
  return {total, warp_sum(demand, lanes)};
}

// One row by a block.
template <class Problem, int kWarps>
__device__ RowCounts number_row(const Team<kWarps>& block, const Problem& problem, int expert, bool first_time) {
  const size_t row = problem.word(expert, 0);
  const bool settles = first_time && (problem.masked() || problem.reroutes());
  int total = 0, demand = 0;
  for (int start = 0; start < problem.words; start += block.kSize) {
    const int word = start + block.rank();
    uint32_t asks[1], top[1];
    load_asks(problem, expert, word, asks);
    if (settles) settle_asks(problem, expert, word, asks);
    const int before = block.exclusive_scan(__popc(asks[0]), &total);
    if (word < problem.words) problem.slots[row + word] = {asks[0], static_cast<uint32_t>(before)};
    if (first_time && problem.marks.top != nullptr) {
      load_words(problem.marks.top + row, word, problem.words, top);
      demand += __popc(asks[0] & top[0]);
    }
  }
  if (!first_time || problem.marks.top == nullptr) return {total, total};
  return {total, block.sum(demand)};
}

template <class Problem>
__device__ RowCounts number_row(const Team<1>&, const Problem& problem, int expert, bool first_time) {
  return number_row(problem, expert, 32, first_time);
}

// `counts` as outputs, by one thread.
template <class Problem>
__device__ __forceinline__ void write_counts(const Problem& problem, int expert, RowCounts counts, bool first_time) {
  problem.out.tokens_per_expert[expert] = counts.asks;
  if (first_time) problem.out.demand_per_expert[expert] = counts.demand;
}

// The rows of experts [first, first + unit), one after the other; returns how many ask.
template <class Team, class Problem>
__device__ int number_rows(const Team& team, const Problem& problem, int first, bool first_time) {
  int asked = 0;
#pragma unroll 1
  for (int expert = first; expert < first + problem.sharing(); ++expert) {
    const RowCounts counts = number_row(team, problem, expert, first_time);
    asked += counts.asks;
    if (team.rank() == 0) write_counts(problem, expert, counts, first_time);
  }
  return asked;
}

// As many rows at once as short rows leave lanes for; each row's lanes return its own counts.
template <class Problem>
__device__ RowCounts number_rows_at_once(const Problem& problem, int first, int lanes_log, bool first_time) {
  const int lanes = 1 << lanes_log, own = first + (lane_id() >> lanes_log), expert = own < problem.experts ? own : -1;
  const RowCounts counts = number_row(problem, expert, lanes, first_time);
  if (expert >= 0 && (lane_id() & (lanes - 1)) == 0) write_counts(problem, expert, counts, first_time);
  return counts;
}

}  // namespace capmoe::cuda
