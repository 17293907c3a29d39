// The gate of a few rows by one warp. The semantics are those of
// reference/gate.py.
//
// Each lane sorts its own experts once; after that only the lanes' best
// compete, a column a round. Scores are computed where they are needed: for the
// softmax's sum, for the columns, and for all where a bias ranks them.
#pragma once

#include "gate_groups.cuh"
#include "gate_load.cuh"
#include "gate_queue.cuh"

namespace capmoe::cuda {

template <class T>
struct EntryOf {
  using Type = PackedEntry;
};
template <>
struct EntryOf<float> {
  using Type = WideEntry;
};

// A column of a row: an entry first, then, for the lane that writes it out, its
// expert and score.
union Column {
  uint2 entry;
  struct {
    int expert;
    float score;
  } out;
};

// One warp's shared memory: `lists` holds the logits first, then what groups
// need, then the lanes' sorted entries.
struct GateScratch {
  uint2* lists;     // [kPerLane + 1][32], an end mark last
  float* scores;    // [kPlaces]: of every expert, where they are ranked by scores
  Column* columns;  // [kRows][K]
};

template <class Layout>
__host__ __device__ int64_t gate_scratch_bytes(const Gate& config) {
  const int64_t words = 2 * 32 * (Layout::kPerLane + 1) + Layout::kPlaces + 2 * Layout::kRows * config.columns;
  return ceil_div(words * 4, 16) * 16;
}

template <class Layout>
__device__ __forceinline__ GateScratch gate_scratch(void* memory) {
  uint2* lists = static_cast<uint2*>(memory);
  float* scores = reinterpret_cast<float*>(lists + 32 * (Layout::kPerLane + 1));
  return {lists, scores, reinterpret_cast<Column*>(scores + Layout::kPlaces)};
}

// The softmax's denominator. kInfinite: a logit may be +inf.
template <class Layout, bool kInfinite>
__device__ __forceinline__ float sum_of_powers(const float (&x)[Layout::kPerLane], float largest) {
  float powers[Layout::kPerLane];
#pragma unroll
  for (int i = 0; i < Layout::kPerLane; ++i)
    powers[i] = exp_summand((kInfinite ? fminf(x[i], FLT_MAX) : x[i]) - largest);
  return Layout::sum_places(powers);
}

// Scores of all the row's experts, which bias and groups then rank: rank_by
// becomes what decides, -inf where forbidden.
template <class Layout>
__device__ Scoring rank_by_score(const Gate& config, const float* bias, const GateScratch& scratch,
                                 float (&rank_by)[Layout::kPerLane]) {
  float own = -INFINITY;
#pragma unroll
  for (int i = 0; i < Layout::kPerLane; ++i) own = fmaxf(own, rank_by[i]);
  Scoring scoring{config.sigmoid, from_key(Layout::largest(to_key(own))), 1.0f};
  if (!config.sigmoid) scoring.sum = sum_of_powers<Layout, false>(rank_by, scoring.largest);

  float* row_scores = scratch.scores + Layout::row() * Layout::kExperts;
  float summand[Layout::kPerLane];
  const int first = Layout::first_expert(), experts = static_cast<int>(config.num_experts);
#pragma unroll
  for (int i = 0; i < Layout::kPerLane; ++i) {
    summand[i] = rank_by[i] > -INFINITY ? scoring(rank_by[i]) : 0.0f;
    row_scores[first + i] = summand[i];
    if (bias == nullptr || rank_by[i] == -INFINITY || first + i >= experts) continue;
    rank_by[i] = summand[i] = forbid_nan(summand[i] + __ldg(bias + first + i));
  }
  if (config.num_groups > 1) {
    float* members = reinterpret_cast<float*>(scratch.lists) + Layout::row() * Layout::kExperts;
    limit_groups<Layout>(config, summand, members, members + Layout::kPlaces, rank_by);
  }
  __syncwarp();
  return scoring;
}

// What turns entries into a row's columns.
template <class Entry, bool kByScore>
struct Finish {
  const Gate& config;
  Scoring scoring;
  const float* row_scores;

  // Expert and score of a column; num_experts and 0 where it is unused.
  __device__ __forceinline__ Column operator()(const Column& column) const {
    const Entry entry = *reinterpret_cast<const Entry*>(&column.entry);
    Column done;
    done.out = {static_cast<int>(config.num_experts), 0.0f};
    if (is_allowed(entry)) {
      const int expert = entry.expert();
      done.out = {expert, kByScore ? row_scores[expert] : scoring(entry.rank())};
    }
    return done;
  }
};

// What scores are divided by where weights are renormalised; `sum` is the
// lane's share of the top-k's scores, in double so that the order of addition
// does not show in float.
template <class Layout>
__device__ __forceinline__ float denominator_of(double sum) {
  return static_cast<float>(fmax(Layout::sum(sum), 1e-20));
}

// A column for each lane: no lane needs what another computed.
template <class Layout, class Entry, bool kByScore, class Write>
__device__ __forceinline__ void write_few_columns(const Finish<Entry, kByScore>& finish, int rows,
                                                  const Column* columns, Write write) {
  const Gate& config = finish.config;
  const int j = Layout::lane_in_row();
  const bool used = j < config.columns;
  Column column;
  column.out = {0, 0.0f};
  if (used) column = finish(columns[j]);
  float denominator = 1.0f;
  if (config.renormalize != Renormalize::none) {
    denominator = denominator_of<Layout>(j < config.top_k ? column.out.score : 0.0f);
  }
  if (!used || Layout::row() >= rows) return;
  const Weighed out = weigh(config, column.out.score, denominator);
  write(Layout::row(), j, column.out.expert, out.weight, out.score);
}

// More columns than a row has lanes: finished by the row's lanes, and then
// written by neighbours to neighbours.
template <class Layout, class Entry, bool kByScore, class Write>
__device__ __forceinline__ void write_many_columns(const Finish<Entry, kByScore>& finish, int rows, Column* all,
                                                   Write write) {
  const Gate& config = finish.config;
  const int per_row = static_cast<int>(config.columns), count = rows * per_row;
  Column* columns = all + Layout::row() * per_row;
  double sum = 0;
#pragma unroll 1
  for (int j = Layout::lane_in_row(); j < per_row; j += Layout::kLanes) {
    const Column column = finish(columns[j]);
    if (j < config.top_k) sum += column.out.score;
    columns[j] = column;
  }
  float denominator = 1.0f;
  if (config.renormalize != Renormalize::none) denominator = denominator_of<Layout>(sum);
  __syncwarp();
  const float row_of_column = 1.0f / per_row;
#pragma unroll 1
  for (int start = 0; start < count; start += 32) {
    const int i = start + Layout::lane();
    const int row = static_cast<int>((i + 0.5f) * row_of_column);
    const float divisor = __shfl_sync(kAllLanes, denominator, row * Layout::kLanes % 32);
    if (i < count) {
      const Weighed out = weigh(config, all[i].out.score, divisor);
      write(row, i - row * per_row, all[i].out.expert, out.weight, out.score);
    }
  }
}

// The gate of `rows` <= Layout::kRows consecutive rows, by one converged warp;
// kByScore where there is a bias or a group. Calls write(row, column, expert,
// weight, score) once for every column of every row: the best candidate first,
// expert num_experts and zeros where a column is unused. Afterwards `memory`,
// of gate_scratch_bytes(), may be reused.
template <class T, class Layout, bool kByScore, class Write>
__device__ __forceinline__ void gate_rows(const T* logits, const float* bias, const Gate& config, int rows,
                                          void* memory, Write write) {
  using Entry = std::conditional_t<kByScore, WideEntry, typename EntryOf<T>::Type>;
  constexpr int kPerLane = Layout::kPerLane;
  const GateScratch scratch = gate_scratch<Layout>(memory);
  const int top_k = static_cast<int>(config.top_k), per_row = static_cast<int>(config.columns);
  Column* columns = scratch.columns + Layout::row() * per_row;

  float x[kPerLane];
  load_logits<T, Layout>(logits, rows, static_cast<int>(config.num_experts), memory, x);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) x[i] = Entry::kUnique ? forbid_nan(x[i]) : clean_logit(x[i]);
  Scoring scoring{config.sigmoid, 0.0f, 1.0f};
  if constexpr (kByScore) scoring = rank_by_score<Layout>(config, bias, scratch, x);

  Entry sorted[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) sorted[i] = Entry::of(x[i], Layout::first_expert() + i);
  sort<0, kPerLane>(sorted);
  Queue<Layout, Entry> queue(scratch.lists, sorted);
  const bool local = config.expand == Expand::local;
  queue.template take<false>(0, local ? top_k : per_row, &columns->entry);
  if (local) {
    queue.keep_range(static_cast<int>(config.local_start), static_cast<int>(config.local_stop));
    queue.template take<true>(top_k, per_row, &columns->entry);
  }
  __syncwarp();

  if (!kByScore && !config.sigmoid) {
    scoring.largest = reinterpret_cast<const Entry*>(&columns->entry)->rank();
    scoring.sum = sum_of_powers<Layout, Entry::kUnique>(x, scoring.largest);
    __syncwarp();
  }
  const Finish<Entry, kByScore> finish{config, scoring, scratch.scores + Layout::row() * Layout::kExperts};
  if (per_row <= Layout::kLanes) {
    write_few_columns<Layout>(finish, rows, columns, write);
  } else {
    write_many_columns<Layout>(finish, rows, scratch.columns, write);
  }
  __syncwarp();
}

}  // namespace capmoe::cuda
