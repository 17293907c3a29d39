// The gate of a few rows by one warp. The semantics are those of reference/gate.py.
//
// Each lane sorts its own experts once; after that only the lanes' best compete, a column a round. Scores are computed
// where they are needed: for the softmax's sum, for the columns, and for all where a bias ranks them.
#pragma once

#include "gate_groups.cuh"
#include "gate_load.cuh"
#include "gate_queue.cuh"

namespace capmoe::cuda {

// A lane's entries of logits, or of scores.
template <class T, class Layout, bool kByScore>
using EntryOf = std::conditional_t<!kByScore && sizeof(T) == 2, PackedEntry,
                                   std::conditional_t<(Layout::kColumns > 0), FloatEntry, WideEntry>>;

// One warp's shared memory: `lists` holds the logits first, then what groups need, then the lanes' sorted entries.
struct GateScratch {
  uint2* lists;    // [kPerLane + 1][32], an end mark last
  float* scores;   // [kPlaces]: of every expert, where they are ranked by scores
  uint2* columns;  // [kRows][K]: entries, best first
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
  return {lists, scores, reinterpret_cast<uint2*>(scores + Layout::kPlaces)};
}

// The softmax's denominator. kInfinite: a logit may be +inf.
template <class Layout, bool kInfinite>
__device__ __forceinline__ float sum_of_powers(const float (&x)[Layout::kPerLane], float largest) {
  float powers[Layout::kPerLane];
#pragma unroll
  for (int i = 0; i < Layout::kPerLane; ++i) {
    powers[i] = exp_summand((kInfinite ? fminf(x[i], FLT_MAX) : x[i]) - largest);
  }
  return Layout::sum_places(powers);
}

// Scores of all the row's experts, which bias and groups then rank: rank_by becomes what decides, -inf where forbidden.
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

// The row's candidates to `columns`, best first, by sorted entries of all its lanes.
template <class Layout, class Entry>
__device__ __forceinline__ void choose_columns(const Gate& config, const Entry (&sorted)[Layout::kPerLane],
                                               uint2* lists, uint2* columns) {
  const bool local = config.expand == Expand::local;
  const int top_k = static_cast<int>(config.top_k), per_row = Layout::columns(config);
  const int start = static_cast<int>(config.local_start), stop = static_cast<int>(config.local_stop);
  if constexpr (Layout::kLanes == 1) {
    int found = 0;
#pragma unroll
    for (int i = 0; i < Layout::kPerLane; ++i) {
      if (local && i >= top_k && (sorted[i].expert() < start || sorted[i].expert() >= stop)) continue;
      if (found < per_row) *reinterpret_cast<Entry*>(columns + found++) = sorted[i];
    }
    for (; found < per_row; ++found) *reinterpret_cast<Entry*>(columns + found) = Entry::none();
  } else {
    Queue<Layout, Entry> queue(lists, sorted);
    queue.template take<false>(0, local ? top_k : per_row, columns);
    if (!local) return;
    queue.keep_range(start, stop);
    queue.template take<true>(top_k, per_row, columns);
  }
}

// What turns an entry into an expert and its score.
template <class Layout, class Entry, bool kByScore>
struct Finish {
  const Gate& config;
  const float* scores;  // [kPlaces]
  Scoring scoring;

  __device__ __forceinline__ float score(const uint2& column, int row, int& expert) const {
    const Entry entry = *reinterpret_cast<const Entry*>(&column);
    expert = static_cast<int>(config.num_experts);
    if (!is_allowed(entry)) return 0.0f;
    expert = entry.expert();
    return kByScore ? scores[row * Layout::kExperts + expert] : scoring(entry.rank());
  }
};

// What scores are divided by where weights are renormalised; `sum` is the lane's share of the top-k's scores, in double
// so that the order of addition does not show in float.
template <class Layout>
__device__ __forceinline__ float denominator_of(double sum) {
  return static_cast<float>(fmax(Layout::sum(sum), 1e-20));
}

// A row for each lane, whose columns it has in its registers. By a whole warp, which is what `write` is called by.
template <class Layout, class Entry, bool kByScore, class Write>
__device__ __forceinline__ void write_own_columns(const Finish<Layout, Entry, kByScore>& finish, int rows,
                                                  const Entry (&sorted)[Layout::kPerLane], Write write) {
  constexpr int kColumns = Layout::kColumns;
  const Gate& config = finish.config;
  int expert[kColumns];
  float score[kColumns], weight[kColumns], denominator = 1.0f;
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const int place = sorted[j].expert();
    const float own =
        kByScore ? finish.scores[Layout::row() * Layout::kExperts + place] : finish.scoring(sorted[j].rank());
    const bool allowed = is_allowed(sorted[j]);
    expert[j] = allowed ? place : static_cast<int>(config.num_experts);
    score[j] = allowed ? own : 0.0f;
  }
  if (config.renormalize != Renormalize::none) {
    static_assert(kColumns == 2);  // whose sum in float is that in double, rounded
    denominator = fmaxf(score[0] + (static_cast<int>(config.top_k) > 1 ? score[1] : 0.0f), 1e-20f);
  }
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const Weighed out = weigh(config, score[j], denominator);
    weight[j] = out.weight;
    score[j] = out.score;
  }
  write(Layout::row() < rows, expert, weight, score);
}

// A column for each lane.
template <class Layout, class Entry, bool kByScore, class Write>
__device__ __forceinline__ void write_few_columns(const Finish<Layout, Entry, kByScore>& finish, int rows,
                                                  const uint2* columns, Write write) {
  const Gate& config = finish.config;
  const int row = Layout::row(), per_row = Layout::columns(config), j = Layout::lane_in_row();
  int expert = 0;
  const float score = j < per_row ? finish.score(columns[row * per_row + j], row, expert) : 0.0f;
  float denominator = 1.0f;
  if (config.renormalize != Renormalize::none) denominator = denominator_of<Layout>(j < config.top_k ? score : 0.0f);
  if (j >= per_row || row >= rows) return;
  const Weighed out = weigh(config, score, denominator);
  write(row, j, expert, out.weight, out.score);
}

// More columns than a row has lanes: neighbouring lanes write neighbouring columns, whatever row they are of.
template <class Layout, class Entry, bool kByScore, class Write>
__device__ __forceinline__ void write_many_columns(const Finish<Layout, Entry, kByScore>& finish, int rows,
                                                   const uint2* columns, Write write) {
  const Gate& config = finish.config;
  const int per_row = Layout::columns(config), count = rows * per_row;
  int expert;
  float denominator = 1.0f;
  if (config.renormalize != Renormalize::none) {
    double sum = 0;
#pragma unroll 1
    for (int j = Layout::lane_in_row(); j < config.top_k; j += Layout::kLanes) {
      sum += finish.score(columns[Layout::row() * per_row + j], Layout::row(), expert);
    }
    denominator = denominator_of<Layout>(sum);
  }
#pragma unroll 1
  for (int start = 0; start < count; start += 32) {
    const int i = start + Layout::lane(), row = Layout::row_of_column(i, per_row);
    const int lane_of_row = row * Layout::kLanes % 32;
    const float divisor = __shfl_sync(kAllLanes, denominator, lane_of_row);
    const Finish<Layout, Entry, kByScore> own{config, finish.scores, finish.scoring.of_lane(lane_of_row)};
    if (i < count) {
      const float score = own.score(columns[i], row, expert);
      const Weighed out = weigh(config, score, divisor);
      write(row, i - row * per_row, expert, out.weight, out.score);
    }
  }
}

// The gate of `rows` <= Layout::kRows consecutive rows, by one converged warp; kByScore where there is a bias or a
// group. Calls write(row, column, expert, weight, score) once for every column of every row: the best candidate first,
// expert num_experts and zeros where a column is unused; or, where the layout says how many columns there are,
// write(is_row, experts, weights, scores), row by lane. Afterwards `memory`, of gate_scratch_bytes(), may be reused.
template <class T, class Layout, bool kByScore, class Write>
__device__ __forceinline__ void gate_rows(const T* logits, const float* bias, const Gate& config, int rows,
                                          void* memory, Write write) {
  using Entry = EntryOf<T, Layout, kByScore>;
  constexpr int kPerLane = Layout::kPerLane;
  const GateScratch scratch = gate_scratch<Layout>(memory);
  uint2* columns = scratch.columns + Layout::row() * Layout::columns(config);

  float x[kPerLane];
  load_logits<T, Layout>(logits, rows, static_cast<int>(config.num_experts), memory, x);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) x[i] = Entry::clean(x[i]);
  Scoring scoring{config.sigmoid, 0.0f, 1.0f};
  if constexpr (kByScore) scoring = rank_by_score<Layout>(config, bias, scratch, x);

  Entry sorted[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) sorted[i] = Entry::of(x[i], Layout::first_expert() + i);
  sort<0, kPerLane>(sorted);
  if constexpr (Layout::kColumns == 0) {
    choose_columns<Layout>(config, sorted, scratch.lists, columns);
    __syncwarp();
  }

  if (!kByScore && !config.sigmoid) {
    scoring.largest = (Layout::kColumns > 0 ? sorted : reinterpret_cast<const Entry*>(columns))->rank();
    scoring.sum = sum_of_powers<Layout, Entry::kUnique>(x, scoring.largest);
  }
  const Finish<Layout, Entry, kByScore> finish{config, scratch.scores, scoring};
  if constexpr (Layout::kColumns > 0) {
    write_own_columns(finish, rows, sorted, write);
  } else if (Layout::columns(config) <= Layout::kLanes) {
    write_few_columns(finish, rows, scratch.columns, write);
  } else {
    write_many_columns(finish, rows, scratch.columns, write);
  }
  __syncwarp();
}

}  // namespace capmoe::cuda
