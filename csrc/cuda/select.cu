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

// Warps of the teams that decide budgets: the more ask for one, the more of them; one also numbers what nothing bounds.
int team_warps(const Select& config) {
  const bool bounded = capacity_of(config, config.tokens) < config.tokens;
  const int64_t asks = config.tokens * config.columns * config.unit / config.num_experts;
  if (asks <= (bounded ? 256 : 8192)) return 1;
  return asks <= 2048 ? 4 : 16;
}

// Whether every block can afford to count all marks itself, and nothing but counting is asked.
bool stands_apart(const Select& config, bool masked) {
  constexpr int64_t kMaxWords = 4096, kMaxExperts = 1024;
  return capacity_of(config, config.tokens) >= config.tokens && !masked && config.reroute_rounds == 1 &&
         config.max_per_token >= config.columns && config.tokens > 0 && config.num_experts <= kMaxExperts &&
         config.num_experts * words_of(config) <= kMaxWords;
}

// Blocks that have something to do; the kernel is right with any number.
int64_t useful_blocks(const Select& config, int warps) {
  if (config.tokens == 0) return 1;  // nobody has zeroed the barrier
  const int threads = select_threads(warps);
  const int64_t deciding = ceil_div(config.num_experts / config.unit, threads / (32 * warps));
  return std::max(deciding, ceil_div(config.tokens, chunk_tokens(threads, static_cast<int>(config.columns))));
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

template <class Id, int kWarps>
void launch(const SelectProblem<Id>& problem, cudaStream_t stream) {
  auto* kernel = &select_kernel<Id, kWarps>;
  const size_t shared = sizeof(int) * (problem.config.num_experts + 1);
  if (shared > 4 * 1024) allow_all_shared(kernel, shared, "select");  // beside 42 KiB of static ones at most
  int64_t blocks = useful_blocks(problem.config, kWarps);
  if (blocks > 1) {
    int resident = 0;
    check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, select_threads(kWarps), shared),
               "select");
    blocks = std::min<int64_t>(blocks, int64_t{resident} * multiprocessors());
  }
  void* arguments[] = {const_cast<SelectProblem<Id>*>(&problem)};
  const dim3 grid(static_cast<unsigned>(blocks)), block(select_threads(kWarps));
  const void* function = reinterpret_cast<const void*>(kernel);
  if (blocks > 1) {
    check_cuda(cudaLaunchCooperativeKernel(function, grid, block, arguments, shared, stream), "select");
  } else {
    check_cuda(cudaLaunchKernel(function, grid, block, arguments, shared, stream), "select");
  }
}

template <class Id>
void launch_apart(const SelectProblem<Id>& problem, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(ceil_div(problem.tokens, kApartTokens));
  select_apart_kernel<<<blocks, kApartThreads, ApartMemory::bytes(problem.experts), stream>>>(problem);
  check_cuda(cudaGetLastError(), "select");
}

}  // namespace

size_t select_scratch(const Select& config) { return slot_bytes(config) + sizeof(uint32_t) * words_of(config); }

template <class Id>
void select(const Id* ids, const float* weights, const float* scores, const bool* token_mask,
            const int64_t* token_priority, const Select& config, const Marks& marks, void* scratch,
            const Selection& out, cudaStream_t stream) {
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
  switch (team_warps(config)) {
    case 1:
      return launch<Id, 1>(problem, stream);
    case 4:
      return launch<Id, 4>(problem, stream);
    default:
      return launch<Id, 16>(problem, stream);
  }
}

template void select(const int32_t*, const float*, const float*, const bool*, const int64_t*, const Select&,
                     const Marks&, void*, const Selection&, cudaStream_t);
template void select(const int64_t*, const float*, const float*, const bool*, const int64_t*, const Select&,
                     const Marks&, void*, const Selection&, cudaStream_t);

}  // namespace capmoe::cuda
