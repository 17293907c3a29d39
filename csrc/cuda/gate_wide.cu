// A block of one warp has 32 consecutive tokens and takes them one after another, their keys in shared memory.
#include "gate_groups.cuh"
#include "gate_wide.cuh"

namespace capmoe::cuda {
namespace {

constexpr int kThreads = 32;
constexpr int kBlockTokens = 32;

using WholeWarp = GateLayout<32, 1>;

// The row of one warp. An expert's key is kForbiddenKey where it is forbidden, 0 once it is chosen.
struct WideRow {
  uint32_t* keys;    // [E]
  float* members;    // [E]: what groups are judged by
  float* values;     // [groups]
  uint32_t* chosen;  // [K]: experts, best first; E where there is none
};

template <class T>
__device__ Scoring row_scoring(const T* logits, const Gate& config) {
  uint32_t largest = 0;
  for (int e = threadIdx.x; e < config.num_experts; e += kThreads) {
    largest = max(largest, to_key(clean_logit(to_float(logits[e]))));
  }
  Scoring scoring{config.sigmoid, from_key(WholeWarp::largest(largest)), 1.0f};
  if (config.sigmoid) return scoring;
  float sum = 0.0f;
  for (int e = threadIdx.x; e < config.num_experts; e += kThreads) {
    sum += exp_summand(clean_logit(to_float(logits[e])) - scoring.largest);
  }
  scoring.sum = WholeWarp::sum(sum);
  return scoring;
}

template <class T>
__device__ void rank_experts(const T* logits, const float* bias, const Gate& config, const Scoring& scoring,
                             const WideRow& row) {
  const bool grouped = config.num_groups > 1;
  for (int e = threadIdx.x; e < config.num_experts; e += kThreads) {
    const float x = clean_logit(to_float(logits[e]));
    float rank_by = x, summand = x;
    if (x > -INFINITY && (bias != nullptr || (grouped && config.top2_sum))) summand = scoring(x);
    if (x > -INFINITY && bias != nullptr) rank_by = summand = forbid_nan(summand + bias[e]);
    row.keys[e] = to_key(rank_by);
    if (grouped) row.members[e] = rank_by > -INFINITY ? (config.top2_sum ? summand : rank_by) : -INFINITY;
  }
  __syncwarp();
  if (!grouped) return;
  group_values<WholeWarp>(config, row.members, row.values);
  __syncwarp();
  int* chosen = reinterpret_cast<int*>(row.members);
  choose_groups<WholeWarp>(config, row.values, chosen);
  __syncwarp();
  const int size = static_cast<int>(config.num_experts / config.num_groups);
  for (int e = threadIdx.x; e < config.num_experts; e += kThreads) {
    if (!chosen[e / size]) row.keys[e] = kForbiddenKey;
  }
  __syncwarp();
}

// Columns [from, to): the best of the experts in [start, stop) that are left. A lane looks through its own experts
// again only when its best was taken.
__device__ void take_best(const Gate& config, const WideRow& row, int from, int to, int start, int stop) {
  constexpr uint32_t kNobody = 0xffffffffu;
  uint32_t key = 0, expert = kNobody;
  const auto look = [&] {
    key = 0;
    for (int e = start + threadIdx.x; e < stop; e += kThreads) {
      if (row.keys[e] > key) key = row.keys[e], expert = e;
    }
  };
  look();
  for (int j = from; j < to; ++j) {
    const uint32_t best = WholeWarp::largest(key);
    const uint32_t winner = __reduce_min_sync(kAllLanes, key == best ? expert : kNobody);
    const bool used = best > kForbiddenKey;
    if (threadIdx.x == 0) row.chosen[j] = used ? winner : static_cast<uint32_t>(config.num_experts);
    if (!used || winner != expert) continue;
    row.keys[expert] = 0;
    look();
  }
  __syncwarp();
}

template <class T>
__device__ float chosen_score(const T* logits, const Scoring& scoring, uint32_t expert, const Gate& config) {
  return expert < config.num_experts ? scoring(clean_logit(to_float(logits[expert]))) : 0.0f;
}

template <class T>
__device__ float topk_sum(const T* logits, const Gate& config, const Scoring& scoring, const WideRow& row) {
  double sum = 0;
  for (int j = threadIdx.x; j < config.top_k; j += kThreads) {
    sum += chosen_score(logits, scoring, row.chosen[j], config);
  }
  return static_cast<float>(fmax(WholeWarp::sum(sum), 1e-20));
}

template <class T>
__device__ void write_row(const T* logits, const Gate& config, const Scoring& scoring, const WideRow& row,
                          int64_t token, int32_t* expert_ids, float* weights, float* scores, const Marks& marks,
                          uint32_t* asks, uint32_t* top) {
  const float denominator = config.renormalize == Renormalize::none ? 1.0f : topk_sum(logits, config, scoring, row);
  for (int j = threadIdx.x; j < config.columns; j += kThreads) {
    const uint32_t expert = row.chosen[j];
    const Weighed out = weigh(config, chosen_score(logits, scoring, expert, config), denominator);
    const int64_t at = token * config.columns + j;
    expert_ids[at] = static_cast<int32_t>(expert);
    weights[at] = out.weight;
    if (scores != nullptr) scores[at] = out.score;
    if (marks.asks == nullptr || expert >= config.num_experts) continue;
    asks[expert] |= 1u << token % kBlockTokens;
    if (j < config.top_k) top[expert] |= 1u << token % kBlockTokens;
    if (marks.keys != nullptr) marks.keys[expert * config.tokens + token] = order_key(out.score);
  }
  __syncwarp();
}

template <class T>
__global__ __launch_bounds__(kThreads) void gate_wide_kernel(const T* logits, const float* bias,
                                                             const __grid_constant__ Gate config, int32_t* expert_ids,
                                                             float* weights, float* scores, uint32_t* all_asks,
                                                             uint32_t* all_top, uint32_t* keys, uint32_t* counters) {
  const Marks marks{all_asks, all_top, keys, nullptr, counters, false};
  extern __shared__ uint32_t wide_memory[];
  const int experts = static_cast<int>(config.num_experts);
  const int ranked = config.expand == Expand::local ? static_cast<int>(config.top_k) : static_cast<int>(config.columns);
  WideRow row;
  row.keys = wide_memory;
  row.members = reinterpret_cast<float*>(row.keys + experts);
  row.values = row.members + experts;
  row.chosen = reinterpret_cast<uint32_t*>(row.values + experts);
  uint32_t* asks = row.chosen + experts;
  uint32_t* top = asks + experts;
  for (int e = threadIdx.x; e < experts; e += kThreads) asks[e] = top[e] = 0;
  __syncwarp();

  const int64_t start = static_cast<int64_t>(blockIdx.x) * kBlockTokens;
  const int64_t stop = min(start + kBlockTokens, config.tokens);
  for (int64_t token = start; token < stop; ++token) {
    const T* own = logits + token * experts;
    const Scoring scoring = row_scoring(own, config);
    rank_experts(own, bias, config, scoring, row);
    take_best(config, row, 0, ranked, 0, experts);
    take_best(config, row, ranked, static_cast<int>(config.columns), static_cast<int>(config.local_start),
              static_cast<int>(config.local_stop));
    write_row(own, config, scoring, row, token, expert_ids, weights, scores, marks, asks, top);
  }
  if (marks.asks == nullptr) return;
  const int64_t words = ceil_div(config.tokens, kBlockTokens);
  for (int e = threadIdx.x; e < experts; e += kThreads) {
    marks.asks[e * words + blockIdx.x] = asks[e];
    if (marks.top != nullptr) marks.top[e * words + blockIdx.x] = top[e];
  }
  clear_counters(marks);
}

}  // namespace

template <class T>
void gate_wide(const T* logits, const float* bias, const Gate& config, int32_t* expert_ids, float* weights,
               float* scores, const Marks& marks, cudaStream_t stream) {
  if (config.num_experts > kMaxWideExperts) {
    throw std::invalid_argument("the gate takes at most " + std::to_string(kMaxWideExperts) + " experts on CUDA, got " +
                                std::to_string(config.num_experts));
  }
  constexpr int kBytesPerExpert = 6 * 4;
  const int bytes = static_cast<int>(kBytesPerExpert * config.num_experts);
  const auto kernel = gate_wide_kernel<T>;
  static_assert(kBytesPerExpert * kMaxWideExperts <= kCommonSharedBytes);
  limit_shared(kernel, kCommonSharedBytes, "gate");
  const auto blocks = static_cast<unsigned>(ceil_div(config.tokens, kBlockTokens));
  kernel<<<blocks, kThreads, bytes, stream>>>(logits, bias, config, expert_ids, weights, scores, marks.asks, marks.top,
                                              marks.keys, marks.counters);
  check_cuda(cudaGetLastError(), "gate");
}

template void gate_wide(const float*, const float*, const Gate&, int32_t*, float*, float*, const Marks&, cudaStream_t);
template void gate_wide(const __nv_bfloat16*, const float*, const Gate&, int32_t*, float*, float*, const Marks&,
                        cudaStream_t);
template void gate_wide(const __half*, const float*, const Gate&, int32_t*, float*, float*, const Marks&, cudaStream_t);

}  // namespace capmoe::cuda
