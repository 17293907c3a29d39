// The end of select: where every expert's rows begin, and each pair's row and weight.
#pragma once

#include "select_team.cuh"
#include "select_tokens.cuh"

namespace capmoe::cuda {

constexpr int kPairsPerThread = 4;

// Tokens that a block takes at a time.
__host__ __device__ inline int chunk_tokens(int threads, int columns) {
  const int tokens = columns < 1 ? threads : kPairsPerThread * threads / columns;
  return tokens < 1 ? 1 : tokens;
}

template <class Problem>
__device__ int rows_of(const Problem& problem, int count) {
  const Select& config = problem.config;
  if (config.padded_rows >= 0) return static_cast<int>(config.padded_rows);
  if (config.row_alignment == 1) return count;
  const int align = static_cast<int>(config.row_alignment);
  return (count + align - 1) / align * align;
}

// offsets [E + 1] in shared memory of experts that keep `counts`: each thread of the team adds up consecutive ones.
template <class Team, class Problem>
__device__ void scan_offsets(const Team& team, const Problem& problem, const int* counts, int* offsets) {
  const int each = (problem.experts + Team::kSize - 1) / Team::kSize, first = team.rank() * each;
  const int last = min(first + each, problem.experts);
  int own = 0, all = 0;
  for (int expert = first; expert < last; ++expert) own += rows_of(problem, counts[expert]);
  int end = team.exclusive_scan(own, &all);
  for (int expert = first; expert < last; ++expert) {
    offsets[expert] = end;
    end += rows_of(problem, counts[expert]);
  }
  if (team.rank() == 0) offsets[problem.experts] = all;
}

// -1 in every row that no token has: the end of each expert's rows, and of the buffer. Unsigned: offsets beyond 31
// bits, of a caller's own buffer size, are beyond its end.
template <class Problem>
__device__ void pad_rows(const Problem& problem, const int* counts, const int* offsets) {
  const int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
  if (problem.config.padded_rows >= 0 || problem.config.row_alignment > 1) {
    for (int expert = thread / 32; expert < problem.experts; expert += threads / 32) {
      const unsigned start = offsets[expert] + counts[expert];
      const unsigned end = min(static_cast<unsigned>(offsets[expert + 1]), static_cast<unsigned>(problem.rows));
      for (unsigned row = start + lane_id(); row < end; row += 32) problem.out.row_tokens[row] = -1;
    }
  }
  for (unsigned row = offsets[problem.experts] + thread; row < static_cast<unsigned>(problem.rows); row += threads) {
    problem.out.row_tokens[row] = -1;
  }
}

// kCount consecutive values of an array, in one access where there are four.
template <class T, int kCount>
__device__ __forceinline__ void load_each(const T* from, T (&values)[kCount]) {
  if constexpr (kCount == 1) {
    values[0] = *from;
  } else if constexpr (sizeof(T) == 4) {
    *reinterpret_cast<uint4*>(values) = *reinterpret_cast<const uint4*>(from);
  } else {
    reinterpret_cast<uint4*>(values)[0] = reinterpret_cast<const uint4*>(from)[0];
    reinterpret_cast<uint4*>(values)[1] = reinterpret_cast<const uint4*>(from)[1];
  }
}

template <class T, int kCount>
__device__ __forceinline__ void store_each(T* to, const T (&values)[kCount]) {
  if constexpr (kCount == 1) {
    *to = values[0];
  } else {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(values);
  }
}

// The row of a token at an expert that keeps it, else -1.
__device__ __forceinline__ int row_of(SlotWord slot, int offset, int token) {
  const uint32_t bit = 1u << (token % 32);
  if ((slot.kept & bit) == 0) return -1;
  return offset + static_cast<int>(slot.before) + __popc(slot.kept & (bit - 1));
}

// Which of a token's columns [column, column + kCount) list an expert that an earlier column lists.
template <int kCount, class Id>
__device__ __forceinline__ void find_repeats(const Id* row, int column, const Id (&ids)[kCount],
                                             bool (&repeats)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    repeats[i] = false;
#pragma unroll
    for (int k = 0; k < i; ++k) repeats[i] |= ids[i] == ids[k];
  }
#pragma unroll 1
  for (int j = 0; j < column; j += kCount) {
    alignas(16) Id earlier[kCount];
    load_each(row + j, earlier);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) repeats[i] |= ids[i] == earlier[k];
    }
  }
}

// Experts, weights and rows of a token's columns [column, column + kCount), and the rows' tokens. slot_of(expert, word)
// is what select has decided.
template <int kCount, class Id, class SlotOf>
__device__ __forceinline__ void finish_pairs(const SelectProblem<Id>& problem, const int* offsets, int token,
                                             int column, SlotOf slot_of) {
  const size_t pair = problem.pair(token, column);
  alignas(16) Id ids[kCount];
  alignas(16) int experts[kCount], rows[kCount];
  alignas(16) float weights[kCount];
  load_each(problem.ids + pair, ids);
  load_each(problem.weights + pair, weights);
  if (problem.reroutes()) load_each(problem.out.rows + pair, rows);
  bool repeats[kCount] = {};
  if (problem.marks.repeats) find_repeats(problem.ids + problem.pair(token, 0), column, ids, repeats);
  const bool real = problem.real(token);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const bool used = real && !repeats[i] && ids[i] >= 0 && ids[i] < problem.experts;
    const bool asked = used && !(problem.reroutes() && rows[i] == 0);
    const int expert = asked ? static_cast<int>(ids[i]) : -1;
    const int row = expert < 0 ? -1 : row_of(slot_of(expert, token / 32), offsets[expert], token);
    experts[i] = expert < 0 ? problem.experts : expert;
    rows[i] = row;
    if (row < 0) weights[i] = 0.0f;
    // Of a caller's own buffer size, unsigned: -1 is beyond it.
    if (static_cast<unsigned>(row) < static_cast<unsigned>(problem.rows)) problem.out.row_tokens[row] = token;
  }
  store_each(problem.out.expert_ids + pair, experts);
  store_each(problem.out.weights + pair, weights);
  store_each(problem.out.rows + pair, rows);
}

// Rescales a token's kept weights to kept_weight_sum.
__device__ __forceinline__ void renormalize(const Select& config, float* weights, int columns) {
  double sum = 0;  // in double, so that the order of addition does not show in float
  for (int j = 0; j < columns; ++j) sum += weights[j];
  const float total = static_cast<float>(fmax(sum, 1e-20));
  for (int j = 0; j < columns; ++j) weights[j] = weights[j] / total * config.kept_weight_sum;
}

// Tokens [start, start + count), by a block.
template <int kCount, class Problem, class SlotOf>
__device__ __forceinline__ void finish_chunk(const Problem& problem, const int* offsets, int start, int count,
                                             SlotOf slot_of) {
  const unsigned groups = problem.columns / kCount;
  // i / groups is __umulhi(i, inverse): i and groups are small.
  const unsigned inverse = groups > 1 ? 0xffffffffu / groups + 1 : 0;
  for (unsigned i = threadIdx.x; i < count * groups; i += blockDim.x) {
    const unsigned token = groups > 1 ? __umulhi(i, inverse) : i;
    finish_pairs<kCount>(problem, offsets, start + token, (i - token * groups) * kCount, slot_of);
  }
  if (problem.config.kept_weight_sum < 0) return;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    renormalize(problem.config, problem.out.weights + problem.pair(start + i, 0), problem.columns);
  }
}

template <class Problem, class SlotOf>
__device__ __forceinline__ void finish_tokens(const Problem& problem, const int* offsets, int chunk, SlotOf slot_of) {
#pragma unroll 1
  for (int start = blockIdx.x * chunk; start < problem.tokens; start += gridDim.x * chunk) {
    const int count = min(chunk, problem.tokens - start);
    if (problem.by_four) {
      finish_chunk<4>(problem, offsets, start, count, slot_of);
    } else {
      finish_chunk<1>(problem, offsets, start, count, slot_of);
    }
  }
}

// Where every expert's rows begin, for all; its counts are of shared or global memory.
template <class Problem>
__device__ __forceinline__ void finish_experts(const Problem& problem, const int* counts, const int* offsets) {
  if (blockIdx.x == 0) {
    for (int e = threadIdx.x; e <= problem.experts; e += blockDim.x) problem.out.expert_offsets[e] = offsets[e];
  }
  pad_rows(problem, counts, offsets);
}

}  // namespace capmoe::cuda
