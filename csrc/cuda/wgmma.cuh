// wgmma: a warpgroup's asynchronous products of tiles in shared memory (sm_90a).
#pragma once

#include "mma.cuh"

namespace capmoe::cuda {

// What other proxies than cp.async and plain stores see of shared memory: all that this thread knows to be written.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// __syncthreads() for warps that come from different places of the program.
__device__ __forceinline__ void block_barrier() { asm volatile("bar.sync 0;" ::: "memory"); }

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending of the warpgroup's latest groups are still under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// How wgmma is told of rows of 128 bytes, swizzled as Tile::offset() does from a multiple of 1024 bytes on.
__device__ __forceinline__ uint64_t wgmma_operand(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEightRows | (address & 0x3FFFF) >> 4;
}

#define CAPMOE_FOUR(s, g) "+f"(s[g][0]), "+f"(s[g][1]), "+f"(s[g][2]), "+f"(s[g][3])
#define CAPMOE_SIXTEEN(s, g) CAPMOE_FOUR(s, g), CAPMOE_FOUR(s, g + 1), CAPMOE_FOUR(s, g + 2), CAPMOE_FOUR(s, g + 3)
#define CAPMOE_WGMMA(type, s, a, b)                                                                                \
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                                        \
               " "                                                                                                 \
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                           \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                  \
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                  \
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                  \
               "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                  \
               "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                  \
               "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "      \
               "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, " \
               "%128, %129, 1, 1, 1, 0, 0;"                                                                        \
               : CAPMOE_SIXTEEN(s, 0), CAPMOE_SIXTEEN(s, 4), CAPMOE_SIXTEEN(s, 8), CAPMOE_SIXTEEN(s, 12),          \
                 CAPMOE_SIXTEEN(s, 16), CAPMOE_SIXTEEN(s, 20), CAPMOE_SIXTEEN(s, 24), CAPMOE_SIXTEEN(s, 28)        \
               : "l"(a), "l"(b))

// sums [64, 256] += a [64, 16] b [256, 16]^T. sums[g]: columns 8 * g to 8 * g + 7, as of mma() in a warp's 16 rows.
template <class T>
__device__ __forceinline__ void wgmma(float (&sums)[32][4], uint64_t a, uint64_t b) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    CAPMOE_WGMMA("bf16", sums, a, b);
  } else {
    CAPMOE_WGMMA("f16", sums, a, b);
  }
}

#undef CAPMOE_WGMMA
#undef CAPMOE_SIXTEEN
#undef CAPMOE_FOUR

}  // namespace capmoe::cuda
