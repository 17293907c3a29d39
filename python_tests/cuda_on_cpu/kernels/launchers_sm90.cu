// Launchers of what sm_90 adds: clusters by attribute, a grid's barrier, a tensor map as an argument.
#include <cooperative_groups.h>

#include "sm90.cuh"

namespace cg = cooperative_groups;

// Each block writes what its neighbour in the cluster has in shared memory.
__global__ void ask_neighbour(int* out) {
  __shared__ int own;
  const cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x == 0) own = 100 + blockIdx.x;
  cluster.sync();
  if (threadIdx.x == 0) {
    out[blockIdx.x] = *cluster.map_shared_rank(&own, (cluster.block_rank() + 1) % cluster.num_blocks());
  }
  cluster.sync();
}

__global__ void sum_of_all(int* parts, int* out) {
  if (threadIdx.x == 0) parts[blockIdx.x] = blockIdx.x * blockIdx.x;
  cg::this_grid().sync();
  if (threadIdx.x != 0) return;
  int sum = 0;
  for (int i = 0; i < gridDim.x; ++i) sum += parts[i];
  out[blockIdx.x] = sum;
}

// One tile of 8 x 8 floats.
__global__ void copy_tile(const __grid_constant__ CUtensorMap map, int column, int row, float* out) {
  __shared__ alignas(128) float tile[64];
  __shared__ uint64_t full;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&full, 1);
    ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
    ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &full, sizeof(tile));
    ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, tile, &map, {column, row}, &full);
  }
  __syncthreads();
  while (!ptx::mbarrier_try_wait_parity(&full, 0)) continue;
  out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" {

int launch_ask_neighbour(int* out, int blocks, int size) {
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks, config.blockDim = 32;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = size, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute, config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, ask_neighbour, out);
}

int launch_sum_of_all(int* parts, int* out, int blocks) {
  void* args[] = {&parts, &out};
  return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(sum_of_all), blocks, 64, args, 0, nullptr);
}

int launch_copy_tile(const float* x, long rows, long columns, int column, int row, float* out) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status);
  if (status != cudaDriverEntryPointSuccess) return -1;
  CUtensorMap map;
  const cuuint64_t dims[] = {cuuint64_t(columns), cuuint64_t(rows)}, strides[] = {columns * sizeof(float)};
  const cuuint32_t box[] = {8, 8}, steps[] = {1, 1};
  const CUresult made = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found)(
      &map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2, const_cast<float*>(x), dims, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (made != CUDA_SUCCESS) return -2;
  copy_tile<<<1, 64>>>(map, column, row, out);
  return cudaGetLastError();
}
}
