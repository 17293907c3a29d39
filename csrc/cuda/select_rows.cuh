// The end of select: where every expert's rows begin, and each pair's row and weight.
#pragma once

#include "select_pairs.cuh"
#include "select_team.cuh"

namespace capmoe::cuda {

template <class Problem>
__device__ int rows_of(const Problem& problem, int count) {
  const int padded = static_cast<int>(problem.config.padded_rows);
  if (padded >= 0) return padded;
  const int align = static_cast<int>(problem.config.row_alignment);
  if (align == 1) return count;
  return (count + align - 1) / align * align;
}

// offsets [E + 1] in shared memory of experts that keep `counts`: each thread of the team adds up consecutive ones.
// Calls also(expert, offset) for each of its own.
template <class Team, class Problem, class Also>
__device__ __forceinline__ void scan_offsets(const Team& team, const Problem& problem, const int* counts, int* offsets,
                                             Also also) {
  const int each = (problem.experts + Team::kSize - 1) / Team::kSize, first = team.rank() * each;
  const int last = min(first + each, problem.experts);
  int own = 0, all = 0;
  for (int expert = first; expert < last; ++expert) own += rows_of(problem, counts[expert]);
  int end = team.exclusive_scan(own, &all);
  for (int expert = first; expert < last; ++expert) {
    offsets[expert] = end;
    also(expert, end);
    end += rows_of(problem, counts[expert]);
  }
  if (team.rank() == 0) offsets[problem.experts] = all;
}

// -1 in every row that no token has: the end of each expert's rows, and of the buffer. Unsigned: offsets beyond 31
// bits, of a caller's own buffer size, are beyond its end.
template <class Problem>
__device__ void pad_rows(const Problem& problem, const int* counts, const int* offsets) {
  const int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
  const Select& config = problem.config;
  if (static_cast<int>(config.padded_rows) >= 0 || static_cast<int>(config.row_alignment) > 1) {
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

// Rescales a token's kept weights to kept_weight_sum.
__device__ __forceinline__ void renormalize(const Select& config, float* weights, int columns) {
  double sum = 0;  // in double, so that the order of addition does not show in float
  for (int j = 0; j < columns; ++j) sum += weights[j];
  const float total = static_cast<float>(fmax(sum, 1e-20));
  for (int j = 0; j < columns; ++j) weights[j] = weights[j] / total * config.kept_weight_sum;
}

// Tokens [start, start + count), by a block: kCount pairs of a token at a time.
template <int kCount, class Problem, class SlotOf>
__device__ __forceinline__ void finish_by_token(const Problem& problem, const int* offsets, int start, int count,
                                                SlotOf slot_of) {
  const unsigned groups = problem.columns / kCount;
  // i / groups is __umulhi(i, inverse): i and groups are small.
  const unsigned inverse = groups > 1 ? 0xffffffffu / groups + 1 : 0;
  for (unsigned i = threadIdx.x; i < count * groups; i += blockDim.x) {
    const unsigned token = groups > 1 ? __umulhi(i, inverse) : i;
    finish_pairs<kCount>(problem, offsets, start + token, (i - token * groups) * kCount, slot_of);
  }
}

// The same where nothing but the slots decides: pairs in fours, whichever tokens they are of.
template <bool kOneToken, class Problem, class SlotOf>
__device__ __forceinline__ void finish_plainly(const Problem& problem, const int* offsets, int start, int count,
                                               SlotOf slot_of) {
  const unsigned columns = problem.columns, pairs = count * columns;
  const unsigned inverse = columns > 1 ? 0xffffffffu / columns + 1 : 0;
  for (unsigned i = 4 * threadIdx.x; i + 3 < pairs; i += 4 * blockDim.x) {
    const unsigned token = columns > 1 ? __umulhi(i, inverse) : i;
    finish_four<kOneToken>(problem, offsets, problem.pair(start, 0) + i, start + token, i - token * columns, slot_of);
  }
  if (kOneToken || pairs % 4 == 0) return;
  const unsigned i = pairs / 4 * 4 + threadIdx.x;
  if (i < pairs) finish_pairs<1>(problem, offsets, start + i / columns, i % columns, slot_of);
}

template <class Problem, class SlotOf>
__device__ __forceinline__ void finish_chunk(const Problem& problem, const int* offsets, int start, int count,
                                             SlotOf slot_of) {
  const bool fours = problem.columns % 4 == 0;
  if (problem.plain && fours) {
    finish_plainly<true>(problem, offsets, start, count, slot_of);
  } else if (problem.plain) {
    finish_plainly<false>(problem, offsets, start, count, slot_of);
  } else if (problem.aligned && fours) {
    finish_by_token<4>(problem, offsets, start, count, slot_of);
  } else {
    finish_by_token<1>(problem, offsets, start, count, slot_of);
  }
  if (problem.config.kept_weight_sum < 0) return;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    renormalize(problem.config, problem.out.weights + problem.pair(start + i, 0), problem.columns);
  }
}

// `chunk` tokens at a time, a multiple of four. slot_of(expert, word) is what select has decided.
template <class Problem, class SlotOf>
__device__ __forceinline__ void finish_tokens(const Problem& problem, const int* offsets, int chunk, SlotOf slot_of) {
#pragma unroll 1
  for (int start = blockIdx.x * chunk; start < problem.tokens; start += gridDim.x * chunk) {
    finish_chunk(problem, offsets, start, min(chunk, problem.tokens - start), slot_of);
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
