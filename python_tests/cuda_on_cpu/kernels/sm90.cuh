// The few functions of cuda::ptx that these kernels use. With TOOLKIT they are the toolkit's, which compile slowly.
#pragma once

#include <cuda.h>

#ifdef TOOLKIT
#include <cuda/ptx>
namespace ptx = cuda::ptx;
#else
#include <cstdint>

namespace ptx {

enum Release { sem_release };
enum Acquire { sem_acquire };
enum Cta { scope_cta };
enum ClusterScope { scope_cluster };
enum Shared { space_shared };
enum Cluster { space_cluster };
enum Global { space_global };
template <int n>
struct n32_t {};

__device__ inline unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ inline void mbarrier_init(uint64_t* bar, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}

__device__ inline void fence_mbarrier_init(Release, ClusterScope) {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void fence_proxy_async(Shared) { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline bool mbarrier_try_wait_parity(uint64_t* bar, unsigned parity) {
  unsigned done;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(done)
               : "r"(shared_address(bar)), "r"(parity)
               : "memory");
  return done;
}

__device__ inline bool mbarrier_try_wait_parity(Acquire, ClusterScope, uint64_t* bar, unsigned parity) {
  unsigned done;
  asm volatile(
      "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(shared_address(bar)), "r"(parity)
      : "memory");
  return done;
}

__device__ inline void mbarrier_arrive(uint64_t* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}

__device__ inline void mbarrier_arrive(Release, ClusterScope, Cluster, uint64_t* bar) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}

__device__ inline void mbarrier_arrive_expect_tx(Release, Cta, Shared, uint64_t* bar, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
               : "memory");
}

__device__ inline void cp_async_bulk_tensor(Cluster, Global, void* to, const void* map, const int (&at)[2],
                                            uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(at[0]), "r"(at[1]), "r"(shared_address(bar))
      : "memory");
}

__device__ inline void cp_async_bulk_tensor(Global, Shared, const void* map, const int (&at)[2], const void* from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(at[0]),
               "r"(at[1]), "r"(shared_address(from))
               : "memory");
}

__device__ inline void cp_async_bulk(Cluster, Global, void* to, const void* from, unsigned bytes, uint64_t* bar,
                                     uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
      "%4;" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(bar)), "h"(blocks)
      : "memory");
}

__device__ inline void cp_async_bulk_commit_group() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

template <int n>
__device__ inline void cp_async_bulk_wait_group_read(n32_t<n>) {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(n) : "memory");
}

}  // namespace ptx
#endif
