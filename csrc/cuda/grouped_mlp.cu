// The grouped MLP: which tiles, and the two launches.
#include <algorithm>
#include <type_traits>

#include "grouped_gemm.cuh"
#include "grouped_gemm_sm90.cuh"
#include "kernels.h"

namespace capmoe::cuda {
namespace {

struct Device {
  int id = -1, multiprocessors = 0;
  int shared_bytes = 0, block_shared_bytes = 0;  // of a multiprocessor, and the most of it that a block may take
  bool warpgroups = false, overlaps = false;
};

// Whether this device runs the sm_90a kernels: others' builds have an empty one in their place, which needs no
// registers.
bool has_warpgroups(int major) {
  if (major != 9) return false;
  cudaFuncAttributes found;
  const auto kernel = grouped_gemm_sm90_kernel<__nv_bfloat16, WarpgroupTile<__nv_bfloat16>>;
  check_cuda(cudaFuncGetAttributes(&found, kernel), "grouped_mlp");
  return found.numRegs > 128;
}

// Whether a launch may begin before the one before it has ended. What waits for that one is compiled in from sm_90 on:
// a newer device may run the code of an older architecture, which does not wait.
bool overlaps_launches(int major) {
  int driver = 0;
  check_cuda(cudaDriverGetVersion(&driver), "grouped_mlp");
  if (major < 9 || driver < 12030) return false;  // from then on in graphs, too
  cudaFuncAttributes found;
  using Few = Tiles<__nv_bfloat16>::Few;
  check_cuda(cudaFuncGetAttributes(&found, grouped_gemm_kernel<__nv_bfloat16, Few, true>), "grouped_mlp");
  return found.ptxVersion >= 90;
}

Device ask_device(int id) {
  Device device;
  const auto ask = [&](int* value, cudaDeviceAttr attribute) {
    check_cuda(cudaDeviceGetAttribute(value, attribute, id), "grouped_mlp");
  };
  int major = 0;
  ask(&device.multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  ask(&device.block_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(&major, cudaDevAttrComputeCapabilityMajor);
  device.warpgroups = has_warpgroups(major);
  device.overlaps = overlaps_launches(major);
  device.id = id;
  return device;
}

const Device& current_device() {
  static thread_local Device device;
  int id = 0;
  check_cuda(cudaGetDevice(&id), "grouped_mlp");
  if (id != device.id) device = ask_device(id);
  return device;
}

template <class Tile>
int shared_bytes(int num_experts) {
  return Tile::kFixedBytes + Pieces::bytes(num_experts, Tile::kWarps);
}

// An early launch may begin, and ask for weights, while the launch before it ends. That one must not be early, so that
// all which this one reads beside its rows is there.
template <class Tile, class T, class Kernel>
void launch(Kernel kernel, const GroupedGemm<T>& product, cudaStream_t stream) {
  constexpr int kReserved = 1024;  // what every block takes of shared memory for the system
  const int bytes = shared_bytes<Tile>(product.num_experts);
  const Device& device = current_device();
  if (bytes > device.block_shared_bytes) {
    throw std::invalid_argument("grouped_mlp takes fewer experts on this GPU, got " +
                                std::to_string(product.num_experts));
  }
  limit_shared(kernel, device.block_shared_bytes, "grouped_mlp");
  const int resident = std::clamp(device.shared_bytes / (bytes + kReserved), 1, Tile::kBlocks);

  // No more blocks than there can be pieces: of each expert that has rows, the last block of rows may be a part.
  const int64_t columns = product.gating == Gating::none ? Tile::kWeights : Tile::kWeights / 2;
  const int64_t experts = std::min(product.rows, product.num_experts);
  const int64_t row_blocks = (product.rows + experts * (Tile::kRows - 1)) / Tile::kRows;
  const int64_t pieces = row_blocks * ceil_div(product.columns, columns);
  const int grid = static_cast<int>(std::min<int64_t>(pieces, int64_t{resident} * device.multiprocessors));
  cudaLaunchAttribute overlap;
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(Tile::kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = product.early && device.overlaps ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, product.in, product.row_tokens, product.weights, product.bias,
                                product.expert_offsets, product.tokens_per_expert, product.out, product.in_rows,
                                product.rows, product.num_experts, product.depth, product.columns, product.gating,
                                product.activation, product.early),
             "grouped_mlp");
  check_cuda(cudaGetLastError(), "grouped_mlp");
}

template <class T>
bool aligned(const GroupedGemm<T>& product) {
  const auto whole = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  constexpr int kChunk = 16 / sizeof(T);
  return product.depth % kChunk == 0 && product.columns % kChunk == 0 && whole(product.in) && whole(product.weights) &&
         whole(product.out);
}

template <class T>
void grouped_gemm(const GroupedGemm<T>& product, int64_t rows_per_expert, cudaStream_t stream) {
  using Few = typename Tiles<T>::Few;
  using Some = typename Tiles<T>::Some;
  using Many = typename Tiles<T>::Many;
  using Unaligned = typename Tiles<T>::Unaligned;
  const Device& device = current_device();
  const auto fits = [&](auto tile) {
    return shared_bytes<decltype(tile)>(product.num_experts) <= device.block_shared_bytes;
  };
  const auto run = [&](auto tile, auto kernel) { launch<decltype(tile)>(kernel, product, stream); };
  // The bounds were chosen by times on an H100 (bench.gpu --ops grouped_mlp), but for Many's of 16-bit elements, which
  // an H100 has warpgroups for: 64 rows are one block of Some's.
  if (!aligned(product)) return run(Unaligned(), grouped_gemm_kernel<T, Unaligned, false>);
  if (rows_per_expert < 24 && fits(Few())) return run(Few(), grouped_gemm_kernel<T, Few, true>);
  if constexpr (sizeof(T) == 2) {
    using Warpgroup = WarpgroupTile<T>;
    if (device.warpgroups && fits(Warpgroup())) return run(Warpgroup(), grouped_gemm_sm90_kernel<T, Warpgroup>);
  }
  if (rows_per_expert >= Tiles<T>::kManyRows && fits(Many())) return run(Many(), grouped_gemm_kernel<T, Many, true>);
  run(Some(), grouped_gemm_kernel<T, Some, true>);
}

}  // namespace

template <class T>
void grouped_mlp(const T* x, int64_t x_rows, const int32_t* row_tokens, const T* gate_up_proj, const T* gate_up_bias,
                 const T* down_proj, const T* down_bias, const int32_t* expert_offsets,
                 const int32_t* tokens_per_expert, int64_t rows, int64_t expected_rows, const GroupedMlp& config,
                 T* hidden_rows, T* y, cudaStream_t stream) {
  if (rows == 0 || x_rows == 0 || config.num_experts == 0) return;
  if (std::max(x_rows, rows) >= kMaxRows) {
    throw std::invalid_argument("grouped_mlp takes fewer than 2**30 rows on CUDA, got " +
                                std::to_string(std::max(x_rows, rows)));
  }
  const int64_t expected = std::clamp<int64_t>(expected_rows, 1, rows);
  const int64_t rows_per_expert = expected / std::min(expected, config.num_experts);
  const auto experts = static_cast<int>(config.num_experts);
  const auto hidden = static_cast<int>(config.hidden), intermediate = static_cast<int>(config.intermediate);
  const auto in_rows = static_cast<int>(x_rows), out_rows = static_cast<int>(rows);
  const Gating gating = !config.gated ? Gating::none : config.interleaved ? Gating::interleaved : Gating::concat;

  const auto activation = static_cast<int>(config.activation);
  const GroupedGemm<T> up{x,           row_tokens, gate_up_proj, gate_up_bias, expert_offsets, tokens_per_expert,
                          hidden_rows, in_rows,    out_rows,     experts,      hidden,         intermediate,
                          gating,      activation, false};
  grouped_gemm(up, rows_per_expert, stream);
  const bool early = rows_per_expert <= 128;  // else a launch is nothing beside the product
  const GroupedGemm<T> down{hidden_rows,       nullptr, down_proj,    down_bias,     expert_offsets,
                            tokens_per_expert, y,       out_rows,     out_rows,      experts,
                            intermediate,      hidden,  Gating::none, kNoActivation, early};
  grouped_gemm(down, rows_per_expert, stream);
}

#define CAPMOE_GROUPED_MLP(T)                                                                                          \
  template void grouped_mlp(const T*, int64_t, const int32_t*, const T*, const T*, const T*, const T*, const int32_t*, \
                            const int32_t*, int64_t, int64_t, const GroupedMlp&, T*, T*, cudaStream_t)

CAPMOE_GROUPED_MLP(float);
CAPMOE_GROUPED_MLP(__nv_bfloat16);
CAPMOE_GROUPED_MLP(__half);

}  // namespace capmoe::cuda
