// A barrier across all blocks of a grid that are resident at once.
#pragma once

#include <cstdint>

namespace capmoe::cuda {

// `arrivals` is 0 when the kernel starts, and only ever grows: each barrier waits for one more arrival of every block.
class GridBarrier {
 public:
  __device__ explicit GridBarrier(uint32_t* arrivals) : arrivals_(arrivals) {}

  // What any thread wrote before it, every thread sees after it.
  __device__ void sync() {
    __syncthreads();
    if (gridDim.x == 1) return;
    target_ += gridDim.x;
    if (threadIdx.x == 0) {
      asm volatile("fence.acq_rel.gpu;\n\tred.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(arrivals_) : "memory");
      uint32_t seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrivals_) : "memory");
      } while (seen < target_);
    }
    __syncthreads();
  }

 private:
  uint32_t* arrivals_;
  uint32_t target_ = 0;
};

}  // namespace capmoe::cuda
