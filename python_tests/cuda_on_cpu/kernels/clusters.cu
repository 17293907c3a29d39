// Blocks that work together: clusters with distributed shared memory and multicast, and the whole grid.
#include <cooperative_groups.h>

#include "sm90.cuh"

namespace cg = cooperative_groups;

constexpr int kBins = 64;

// Counts of values in a histogram that the blocks of a cluster hold in parts.
extern "C" __global__ void __cluster_dims__(4, 1, 1) spread_bins(const int* values, int count, int* bins) {
  __shared__ int part[kBins / 4];
  const cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x < kBins / 4) part[threadIdx.x] = 0;
  cluster.sync();  // all parts are zero
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    const int bin = values[i];
    atomicAdd(cluster.map_shared_rank(part, bin % 4) + bin / 4, 1);
  }
  cluster.sync();  // all have counted
  if (threadIdx.x < kBins / 4) {
    atomicAdd(&bins[threadIdx.x * 4 + cluster.block_rank()], part[threadIdx.x]);
  }
}

// Each block of a pair loads half of every tile for both; y gets the tile's sum per thread, from each block.
extern "C" __global__ void __cluster_dims__(2, 1, 1) shared_tiles(const int* x, int* y, int tiles) {
  __shared__ alignas(128) int tile[2][256];
  __shared__ uint64_t full[2], empty[2];
  const cg::cluster_group cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank(), thread = threadIdx.x;
  if (thread == 0) {
    for (int k = 0; k < 2; ++k) {
      ptx::mbarrier_init(&full[k], 1);
      ptx::mbarrier_init(&empty[k], 2);
    }
    ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
  }
  cluster.sync();  // the barriers of both are there
  int sum = 0;
  for (int t = 0; t < tiles; ++t) {
    const int k = t & 1, turn = t >> 1;
    if (thread == 0) {
      while (!ptx::mbarrier_try_wait_parity(ptx::sem_acquire, ptx::scope_cluster, &empty[k], (turn & 1) ^ 1)) {
      }
      ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &full[k], 1024);
      ptx::cp_async_bulk(ptx::space_cluster, ptx::space_global, &tile[k][128 * rank], &x[256 * t + 128 * rank], 512,
                         &full[k], uint16_t{3});
    }
    while (!ptx::mbarrier_try_wait_parity(&full[k], turn & 1)) {
    }
    sum += tile[k][thread] + tile[k][255 - thread];
    __syncthreads();  // the block has read
    if (thread < 2) {
      ptx::mbarrier_arrive(ptx::sem_release, ptx::scope_cluster, ptx::space_cluster,
                           cluster.map_shared_rank(&empty[k], thread));
    }
  }
  y[rank * blockDim.x + thread] = sum;
  cluster.sync();  // nobody leaves before the other's last arrival
}

// Prefix sums of what each block adds up, with the grid's barrier between.
extern "C" __global__ void grid_scan(const int* x, int* totals, int* y) {
  const cg::grid_group grid = cg::this_grid();
  const int i = grid.thread_rank();
  const int total = __syncthreads_count(x[i] & 1);
  if (threadIdx.x == 0) totals[blockIdx.x] = total;
  grid.sync();  // all totals are there
  int before = 0;
  for (int b = 0; b < blockIdx.x; ++b) before += totals[b];
  y[i] = before;
}
