// Capacity and prefix-sum slots. The semantics are those of reference/select.py.
#include <algorithm>
#include <atomic>

#include "select_apart.cuh"
#include "select_kernel.cuh"

namespace capmoe::cuda {
namespace {

constexpr size_t align_up(size_t bytes) { return (bytes + 255) / 256 * 256; }

int64_t words_of(const Select& config) { return ceil_div(config.tokens, 32); }

size_t slot_bytes(const Select& config) { return align_up(sizeof(SlotWord) * config.num_experts * words_of(config)); }

// Whether every block can afford to count all marks itself, and nothing but counting is asked.
bool stands_apart(const Select& config, bool masked) {
  constexpr int64_t kMaxExperts = 1024, kMaxTokens = 65535;        // which are counted in 16 bits
  const int64_t most_words = config.tokens <= 1024 ? 8192 : 4096;  // few tokens have few blocks
  return capacity_of(config, config.tokens) >= config.tokens && !masked && config.reroute_rounds == 1 &&
         config.max_per_token >= config.columns && config.tokens > 0 && config.num_experts <= kMaxExperts &&
         config.tokens <= kMaxTokens && config.num_experts * words_of(config) <= most_words;
}

// Many tokens have more warps of a block, and longer lists.
SelectShape shape_for(const Select& config) {
  return config.tokens <= 8192 ? SelectShape{8, 512} : SelectShape{16, 1024};
}

// Blocks that have something to do; the kernel is right with any number.
int64_t useful_blocks(const Select& config, int warps) {
  if (config.tokens == 0) return 1;  // nobody has zeroed the barrier
  const int64_t budgets = config.num_experts / config.unit, asks = config.tokens * config.columns / budgets;
  const bool bounded = capacity_of(config, config.tokens) < config.tokens;
  const int64_t of_a_block = !bounded || asks <= 256 ? warps : asks <= 1024 ? 2 : 1;
  return std::max(ceil_div(budgets, of_a_block),
                  ceil_div(config.tokens, warps / 8 * chunk_tokens(256, static_cast<int>(config.columns))));
}

int multiprocessors() {
  constexpr int kMost = 64;
  static std::atomic<int> known[kMost] = {};
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), "select");
  if (device < kMost && known[device] > 0) return known[device];
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "select");
  if (device < kMost) known[device] = count;
  return count;
}

template <int kWarps, class Problem>
void launch(const Problem& problem, const SelectShape& shape, cudaStream_t stream) {
  auto* kernel = &select_kernel<Problem, kWarps>;
  const auto shared = static_cast<size_t>(shape.shared_bytes(problem.experts));
  if (shared > 46 * 1024) allow_all_shared(kernel, shared, "select");  // beside a few static bytes
  int64_t blocks = useful_blocks(problem.config, kWarps);
  if (blocks > 1) {
    int resident = 0;
    check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, 32 * kWarps, shared), "select");
    blocks = std::min<int64_t>(blocks, int64_t{resident} * multiprocessors());
  }
  int listed = shape.listed;
  void* arguments[] = {const_cast<Problem*>(&problem), &listed};
  const dim3 grid(static_cast<unsigned>(blocks)), block(32 * kWarps);
  const void* function = reinterpret_cast<const void*>(kernel);
  if (blocks > 1) {
    check_cuda(cudaLaunchCooperativeKernel(function, grid, block, arguments, shared, stream), "select");
  } else {
    check_cuda(cudaLaunchKernel(function, grid, block, arguments, shared, stream), "select");
  }
}

template <class Problem>
void launch(const Problem& problem, cudaStream_t stream) {
  const SelectShape shape = shape_for(problem.config);
  if (shape.warps == 8) {
    launch<8>(problem, shape, stream);
  } else {
    launch<16>(problem, shape, stream);
  }
}

template <class Id>
void launch_apart(const SelectProblem<Id>& problem, cudaStream_t stream) {
  const ApartShape shape(problem.words, problem.columns, problem.experts);
  const auto blocks = static_cast<unsigned>(ceil_div(problem.words, shape.own_words));
  select_apart_kernel<<<blocks, shape.threads, shape.shared_bytes(problem.experts), stream>>>(problem, shape.own_words);
  check_cuda(cudaGetLastError(), "select");
}

}  // namespace

size_t select_scratch(const Select& config) { return slot_bytes(config) + sizeof(uint32_t) * words_of(config); }

template <class Id>
void select(const Id* ids, const float* weights, const float* scores, const bool* token_mask,
            const int64_t* token_priority, const Select& config, const Marks& marks, void* scratch,
            const Selection& out, cudaStream_t stream) {
  if (config.num_experts * words_of(config) > INT32_MAX) {
    throw std::invalid_argument("select takes fewer than 2**36 pairs of token and expert on CUDA, got " +
                                std::to_string(config.num_experts * config.tokens));
  }
  if (config.tokens * config.columns > INT32_MAX / 2) {
    throw std::invalid_argument("select takes fewer than 2**30 pairs on CUDA, got " +
                                std::to_string(config.tokens * config.columns));
  }
  auto* slots = static_cast<SlotWord*>(scratch);
  auto* mask_words = reinterpret_cast<uint32_t*>(static_cast<char*>(scratch) + slot_bytes(config));
  const auto problem =
      select_problem(ids, weights, scores, token_mask, token_priority, config, marks, slots, mask_words, out);
  if (stands_apart(config, token_mask != nullptr)) {
    launch_apart(problem, stream);
    return;
  }
  if (is_simple(config, token_mask != nullptr, token_priority != nullptr)) {
    launch(SimpleProblem<Id>{problem}, stream);
  } else {
    launch(problem, stream);
  }
}

template void select(const int32_t*, const float*, const float*, const bool*, const int64_t*, const Select&,
                     const Marks&, void*, const Selection&, cudaStream_t);
template void select(const int64_t*, const float*, const float*, const bool*, const int64_t*, const Select&,
                     const Marks&, void*, const Selection&, cudaStream_t);

}  // namespace capmoe::cuda
