// Row softmax with a block per row, and softmax followed by top-k with a warp per row.
#include <cuda_runtime.h>

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxExperts = 64;

struct Larger {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

struct Plus {
  __device__ float operator()(float a, float b) const { return a + b; }
};

template <typename Combine>
__device__ float reduce_warp(float value, Combine combine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

template <typename Combine>
__device__ float reduce_block(float value, float* partial, Combine combine) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  value = reduce_warp(value, combine);
  if (lane == 0) partial[warp] = value;
  __syncthreads();  // every warp has written its partial result
  value = partial[0];
  for (int w = 1; w < kWarps; ++w) value = combine(value, partial[w]);
  __syncthreads();  // the next reduction may overwrite them
  return value;
}

// The row is staged in dynamic shared memory: `columns` floats.
extern "C" __global__ void __launch_bounds__(kThreads)
    softmax_rows(const float* __restrict__ logits, float* __restrict__ probabilities, int columns) {
  extern __shared__ float row[];
  __shared__ float partial[kWarps];
  const float* source = logits + static_cast<size_t>(blockIdx.x) * columns;
  float* target = probabilities + static_cast<size_t>(blockIdx.x) * columns;

  float largest = -INFINITY;
  const bool vectors = columns % 4 == 0;
  if (vectors) {
    for (int i = threadIdx.x; i < columns / 4; i += kThreads) {
      const float4 four = reinterpret_cast<const float4*>(source)[i];
      largest = fmaxf(largest, fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w)));
      row[4 * i] = four.x;
      row[4 * i + 1] = four.y;
      row[4 * i + 2] = four.z;
      row[4 * i + 3] = four.w;
    }
  } else {
    for (int i = threadIdx.x; i < columns; i += kThreads) {
      row[i] = source[i];
      largest = fmaxf(largest, row[i]);
    }
  }
  largest = reduce_block(largest, partial, Larger());

  float total = 0.0f;
  for (int i = threadIdx.x; i < columns; i += kThreads) {
    row[i] = __expf(row[i] - largest);
    total += row[i];
  }
  total = reduce_block(total, partial, Plus());
  for (int i = threadIdx.x; i < columns; i += kThreads) target[i] = row[i] / total;
}

// A warp per token. An expert's rank is the number of experts that beat it, ties going to the
// lower index; those ranked below top_k are kept and their weights sum to one.
extern "C" __global__ void __launch_bounds__(kThreads)
    topk_gate(const float* __restrict__ logits, float* __restrict__ weights, int* __restrict__ ids, int tokens,
              int experts, int top_k) {
  __shared__ float scores[kWarps][kMaxExperts];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int token = blockIdx.x * kWarps + warp;
  if (token >= tokens) return;

  float logit[2], score[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int expert = lane + 32 * half;
    logit[half] = expert < experts ? logits[static_cast<size_t>(token) * experts + expert] : -INFINITY;
  }
  const float largest = reduce_warp(fmaxf(logit[0], logit[1]), Larger());
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    score[half] = __expf(logit[half] - largest);
    scores[warp][lane + 32 * half] = score[half];
  }
  __syncwarp();  // the other lanes' scores

  int rank[2] = {0, 0};
  for (int other = 0; other < experts; ++other) {
    const float rival = scores[warp][other];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int expert = lane + 32 * half;
      rank[half] += rival > score[half] || (rival == score[half] && other < expert);
    }
  }
  float kept = 0.0f;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (lane + 32 * half < experts && rank[half] < top_k) kept += score[half];
  }
  kept = reduce_warp(kept, Plus());
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int expert = lane + 32 * half;
    if (expert < experts && rank[half] < top_k) {
      weights[static_cast<size_t>(token) * top_k + rank[half]] = score[half] / kept;
      ids[static_cast<size_t>(token) * top_k + rank[half]] = expert;
    }
  }
}
