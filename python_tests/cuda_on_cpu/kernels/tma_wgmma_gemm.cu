// C = A B^T in bf16, by what sm_90 has for it: tensor copies, a ring of mbarriers, wgmma and setmaxnreg.
#include <cuda_bf16.h>

#include "sm90.cuh"

constexpr int kM = 128, kN = 64, kK = 64, kStages = 3;
constexpr int kGroups = kM / 64, kWarps = 4 * kGroups;
constexpr unsigned kStageBytes = (kM + kN) * kK * sizeof(__nv_bfloat16);

struct Shared {
  __nv_bfloat16 a[kStages][kM][kK], b[kStages][kN][kK];  // rows of 128 bytes, swizzled
  __nv_bfloat16 c[kM][kN];
  uint64_t full[kStages], empty[kStages];
};

// Of an operand whose rows along K have 128 bytes.
__device__ inline uint64_t descriptor(const void* tile) {
  constexpr uint64_t leading = 16 >> 4, stride = 1024 >> 4, swizzle_128 = 1;
  return (ptx::shared_address(tile) & 0x3ffff) >> 4 | leading << 16 | stride << 32 | swizzle_128 << 62;
}

__device__ inline void keep(float (&d)[32]) {
  for (float& x : d) asm volatile("" : "+f"(x)::"memory");
}

#define FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
__device__ inline void multiply(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, 1, 1, 1, 0, 0;"
      : FOUR(0), FOUR(4), FOUR(8), FOUR(12), FOUR(16), FOUR(20), FOUR(24), FOUR(28)
      : "l"(a), "l"(b));
}
#undef FOUR

__device__ inline void wait(uint64_t* bar, unsigned parity) {
  while (!ptx::mbarrier_try_wait_parity(bar, parity)) {
  }
}

// One thread fills the stages.
__device__ inline void produce(Shared& s, const CUtensorMap& a, const CUtensorMap& b, int tiles) {
  for (int t = 0; t < tiles; ++t) {
    const int k = t % kStages, turn = t / kStages;
    wait(&s.empty[k], (turn & 1) ^ 1);
    ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &s.full[k], kStageBytes);
    const int at_a[2] = {t * kK, static_cast<int>(blockIdx.x) * kM};
    const int at_b[2] = {t * kK, static_cast<int>(blockIdx.y) * kN};
    ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, &s.a[k], &a, at_a, &s.full[k]);
    ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, &s.b[k], &b, at_b, &s.full[k]);
  }
}

// A warpgroup multiplies its 64 rows; the products of one stage are under way while the next one is waited for.
__device__ inline void consume(Shared& s, float (&d)[32], int group, int tiles) {
  const bool first_lane = threadIdx.x % 32 == 0;
  for (float& x : d) x = 0;
  for (int t = 0; t < tiles; ++t) {
    const int k = t % kStages, turn = t / kStages;
    wait(&s.full[k], turn & 1);
    const uint64_t a = descriptor(s.a[k][64 * group]), b = descriptor(s.b[k]);
    keep(d);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int i = 0; i < kK / 16; ++i) multiply(d, a + 2 * i, b + 2 * i);  // 16 along K are 32 bytes
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    if (t > 0 && first_lane) ptx::mbarrier_arrive(&s.empty[(t - 1) % kStages]);
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  keep(d);
}

// By way of shared memory and a tensor copy, which leaves out what is not in C.
__device__ inline void store(Shared& s, const CUtensorMap& c, const float (&d)[32], int group) {
  const int thread = threadIdx.x % 128, lane = thread % 32;
  for (int i = 0; i < 32; i += 2) {
    const int row = 64 * group + thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2;
    *reinterpret_cast<__nv_bfloat162*>(&s.c[row][column]) = __floats2bfloat162_rn(d[i], d[i + 1]);
  }
  ptx::fence_proxy_async(ptx::space_shared);
  asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
  if (thread == 0) {
    const int at[2] = {static_cast<int>(blockIdx.y) * kN, static_cast<int>(blockIdx.x) * kM + 64 * group};
    ptx::cp_async_bulk_tensor(ptx::space_global, ptx::space_shared, &c, at, &s.c[64 * group]);
    ptx::cp_async_bulk_commit_group();
    ptx::cp_async_bulk_wait_group_read(ptx::n32_t<0>());  // the block's memory outlives the copy
  }
}

extern "C" __global__ void __launch_bounds__(128 * (1 + kGroups), 1)
    tma_wgmma_gemm(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                   const __grid_constant__ CUtensorMap c, int tiles) {
  extern __shared__ __align__(1024) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    for (int k = 0; k < kStages; ++k) {
      ptx::mbarrier_init(&s.full[k], 1);
      ptx::mbarrier_init(&s.empty[k], kWarps);
    }
    ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
  }
  __syncthreads();  // the barriers are there
  const int group = static_cast<int>(threadIdx.x) / 128 - 1;
  if (group < 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) produce(s, a, b, tiles);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    float d[32];
    consume(s, d, group, tiles);
    store(s, c, d, group);
  }
}
