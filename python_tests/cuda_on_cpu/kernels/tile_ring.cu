// A ring of tiles between a producer and consumers, by tensor copies.
#include "sm90.cuh"

constexpr int kRows = 8, kColumns = 32, kStages = 3, kConsumers = 128;
constexpr int kTileBytes = kRows * kColumns * sizeof(int);

struct alignas(1024) Tiles {
  int in[kStages][kRows][kColumns];
  int out[kRows][kColumns];
};

// y = 3 x + 1, a block per column of tiles. The fifth warp loads, the others compute, the first thread stores.
extern "C" __global__ void __launch_bounds__(kConsumers + 32)
    tile_ring(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap y, int tiles) {
  __shared__ Tiles s;
  __shared__ uint64_t full[kStages], empty[kStages];
  const int thread = threadIdx.x, column = blockIdx.x * kColumns;
  if (thread == 0) {
    for (int k = 0; k < kStages; ++k) {
      ptx::mbarrier_init(&full[k], 1);
      ptx::mbarrier_init(&empty[k], kConsumers);
    }
    ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
  }
  __syncthreads();  // the barriers are there
  if (thread >= kConsumers) {
    if (thread != kConsumers) return;
    for (int t = 0; t < tiles; ++t) {
      const int k = t % kStages, turn = t / kStages;
      while (!ptx::mbarrier_try_wait_parity(&empty[k], (turn & 1) ^ 1)) {
      }
      ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &full[k], kTileBytes);
      const int at[2] = {column, t * kRows};
      ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, &s.in[k], &x, at, &full[k]);
    }
    return;
  }
  for (int t = 0; t < tiles; ++t) {
    const int k = t % kStages, turn = t / kStages;
    while (!ptx::mbarrier_try_wait_parity(&full[k], turn & 1)) {
    }
    for (int i = thread; i < kRows * kColumns; i += kConsumers) {
      (&s.out[0][0])[i] = 3 * (&s.in[k][0][0])[i] + 1;
    }
    ptx::mbarrier_arrive(&empty[k]);
    ptx::fence_proxy_async(ptx::space_shared);      // the store may see the tile
    asm volatile("bar.sync 1, 128;" ::: "memory");  // all have written
    if (thread == 0) {
      const int at[2] = {column, t * kRows};
      ptx::cp_async_bulk_tensor(ptx::space_global, ptx::space_shared, &y, at, &s.out);
      ptx::cp_async_bulk_commit_group();
      ptx::cp_async_bulk_wait_group_read(ptx::n32_t<0>());  // the tile is free
    }
    asm volatile("bar.sync 1, 128;" ::: "memory");  // for everybody
  }
}
