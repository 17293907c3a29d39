// The toolkit's C++ barrier, and what copies with it.
#include <cuda/barrier>

// y = x + 1 by plain bulk copies and the C++ barrier.
extern "C" __global__ void add_one(const int* x, int* y) {
  using barrier = cuda::barrier<cuda::thread_scope_block>;
  __shared__ alignas(128) int s[256];
#pragma nv_diag_suppress static_var_with_dynamic_init
  __shared__ barrier bar;
  if (threadIdx.x == 0) {
    init(&bar, blockDim.x);
    cuda::device::experimental::fence_proxy_async_shared_cta();
  }
  __syncthreads();
  barrier::arrival_token token;
  if (threadIdx.x == 0) {
    cuda::memcpy_async(s, x + 256 * blockIdx.x, cuda::aligned_size_t<16>(sizeof(s)), bar);
    token = cuda::device::barrier_arrive_tx(bar, 1, 0);
  } else {
    token = bar.arrive();
  }
  bar.wait(std::move(token));
  s[threadIdx.x] += 1;
  cuda::device::experimental::fence_proxy_async_shared_cta();
  __syncthreads();
  if (threadIdx.x == 0) {
    cuda::device::experimental::cp_async_bulk_shared_to_global(y + 256 * blockIdx.x, s, sizeof(s));
    cuda::device::experimental::cp_async_bulk_commit_group();
    cuda::device::experimental::cp_async_bulk_wait_group_read<0>();
  }
}

// Every thread copies its own elements through cuda::memcpy_async, which is cp.async with an mbarrier behind.
extern "C" __global__ void reverse(const int4* x, int4* y) {
  using barrier = cuda::barrier<cuda::thread_scope_block>;
  __shared__ int4 s[128];
#pragma nv_diag_suppress static_var_with_dynamic_init
  __shared__ barrier bar;
  if (threadIdx.x == 0) init(&bar, blockDim.x);
  __syncthreads();
  cuda::memcpy_async(&s[threadIdx.x], &x[threadIdx.x], cuda::aligned_size_t<16>(16), bar);
  bar.arrive_and_wait();
  y[threadIdx.x] = s[127 - threadIdx.x];
}
