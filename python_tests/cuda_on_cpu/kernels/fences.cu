// Blocks and warps that tell each other through global memory. Each comment in capitals names a place that a test
// edits.
constexpr int kThreads = 64;

__device__ int sum_all(const int* partial, int count) {
  int sum = 0;
  for (int i = 0; i < count; ++i) sum += partial[i];
  return sum;
}

// Every block writes one number; the last to arrive adds them up.
extern "C" __global__ void last_block_adds_blocks(int* partial, unsigned* arrived, int* total) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = blockIdx.x + 1;
    __threadfence();  // BEFORE
    last = atomicAdd(arrived, 1) == gridDim.x - 1;
    __threadfence();  // AFTER
  }
  __syncthreads();
  if (last && threadIdx.x == 0) *total = sum_all(partial, gridDim.x);
}

// Every thread writes one number and fences it, before the barrier behind which one thread speaks for its block.
extern "C" __global__ void last_block_adds_threads(int* partial, unsigned* arrived, int* total) {
  __shared__ bool last;
  partial[blockIdx.x * kThreads + threadIdx.x] = threadIdx.x;
  __threadfence();  // BEFORE
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(arrived, 1) == gridDim.x - 1;
  __syncthreads();
  if (last) {
    __threadfence();  // AFTER
    if (threadIdx.x == 0) *total = sum_all(partial, gridDim.x * kThreads);
  }
}

// The same with the fence behind the barrier, by the thread that speaks.
extern "C" __global__ void last_block_one_fences(int* partial, unsigned* arrived, int* total) {
  __shared__ bool last;
  partial[blockIdx.x * kThreads + threadIdx.x] = threadIdx.x;
  __syncthreads();  // BLOCK
  if (threadIdx.x == 0) {
    __threadfence();  // BEFORE
    last = atomicAdd(arrived, 1) == gridDim.x - 1;
    __threadfence();  // AFTER
  }
  __syncthreads();
  if (last && threadIdx.x == 0) *total = sum_all(partial, gridDim.x * kThreads);
}

// The same with an atomic that releases and acquires.
extern "C" __global__ void last_block_acq_rel(int* partial, unsigned* arrived, int* total) {
  __shared__ bool last;
  partial[blockIdx.x * kThreads + threadIdx.x] = threadIdx.x;
  __syncthreads();  // BLOCK
  if (threadIdx.x == 0) {
    unsigned before;
    asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], 1;" : "=r"(before) : "l"(arrived) : "memory");
    last = before == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) *total = sum_all(partial, gridDim.x * kThreads);
}

// Lanes of one warp, and other warps, take turns.
extern "C" __global__ void locked_count(int* lock, int* count) {
  while (atomicCAS(lock, 0, 1) != 0) {
  }
  __threadfence();  // LOCK
  *count += 1;
  __threadfence();  // UNLOCK
  atomicExch(lock, 0);
}

extern "C" __global__ void locked_count_in_shared(int* out) {
  __shared__ int lock, count;
  if (threadIdx.x == 0) lock = 0, count = 0;
  __syncthreads();
  while (atomicCAS(&lock, 0, 1) != 0) {
  }
  __threadfence_block();  // LOCK
  *const_cast<volatile int*>(&count) = count + 1;
  __threadfence_block();  // UNLOCK
  atomicExch(&lock, 0);
  __syncthreads();
  if (threadIdx.x == 0) *out = count;
}
