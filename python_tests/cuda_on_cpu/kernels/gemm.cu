// Grouped GEMM in bf16: rows offsets[e] .. offsets[e + 1] of A times matrix e of B.
// A is [rows, depth] and B is [experts, depth, columns], both row-major; depth is a multiple of
// kTileK and columns one of kTileN. cp.async fills a ring of kStages swizzled tiles.
#include <cuda_bf16.h>

#include <cstdint>

constexpr int kTileM = 64, kTileN = 64, kTileK = 32, kStages = 3, kThreads = 128;
constexpr int kBytesA = kTileM * kTileK * 2, kBytesB = kTileK * kTileN * 2;
constexpr int kStageBytes = kBytesA + kBytesB;

// A tile row of A is 64 bytes, one of B is 128: chunks of 16 bytes are permuted within the row so
// that the eight rows which ldmatrix reads together lie in different banks.
__device__ uint32_t place_in_a(int row, int chunk) { return row * 64 + ((chunk ^ (row / 2 % 4)) * 16); }

__device__ uint32_t place_in_b(int row, int chunk) { return row * 128 + ((chunk ^ (row % 8)) * 16); }

__device__ void copy_async(uint32_t shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}

__device__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ void load_matrices(uint32_t (&to)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared)
               : "memory");
}

__device__ void load_transposed(uint32_t (&to)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared)
               : "memory");
}

__device__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

extern "C" __global__ void __launch_bounds__(kThreads)
    grouped_gemm(const __nv_bfloat16* __restrict__ a, const __nv_bfloat16* __restrict__ b,
                 __nv_bfloat16* __restrict__ c, const int* __restrict__ offsets, int columns, int depth) {
  extern __shared__ __align__(128) uint8_t ring[];
  const int expert = blockIdx.z;
  const int first_row = offsets[expert] + blockIdx.y * kTileM, end_row = offsets[expert + 1];
  const int first_column = blockIdx.x * kTileN;
  if (first_row >= end_row) return;

  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
  const uint32_t ring_start = static_cast<uint32_t>(__cvta_generic_to_shared(ring));
  const __nv_bfloat16* matrix = b + static_cast<size_t>(expert) * depth * columns;

  auto fill = [&](int step) {
    const uint32_t tile_a = ring_start + step % kStages * kStageBytes, tile_b = tile_a + kBytesA;
#pragma unroll
    for (int i = thread; i < kTileM * kTileK / 8; i += kThreads) {
      const int row = i / 4, chunk = i % 4;
      const bool real = first_row + row < end_row;
      const __nv_bfloat16* from = a + static_cast<size_t>(real ? first_row + row : first_row) * depth;
      copy_async(tile_a + place_in_a(row, chunk), from + step * kTileK + chunk * 8, real ? 16 : 0);
    }
#pragma unroll
    for (int i = thread; i < kTileK * kTileN / 8; i += kThreads) {
      const int row = i / 8, chunk = i % 8;
      const __nv_bfloat16* from = matrix + static_cast<size_t>(step * kTileK + row) * columns;
      copy_async(tile_b + place_in_b(row, chunk), from + first_column + chunk * 8, 16);
    }
  };

  float sums[2][4][4] = {};
  const int steps = depth / kTileK;
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) fill(step);
    commit_copies();
  }
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // everyone's copies are there, and the oldest tile is no longer read
    if (step + kStages - 1 < steps) fill(step + kStages - 1);
    commit_copies();

    const uint32_t tile_a = ring_start + step % kStages * kStageBytes, tile_b = tile_a + kBytesA;
#pragma unroll
    for (int part = 0; part < kTileK / 16; ++part) {
      uint32_t left[2][4], right[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = warp_row + i * 16 + lane % 16, chunk = part * 2 + lane / 16;
        load_matrices(left[i], tile_a + place_in_a(row, chunk));
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = part * 16 + lane % 16, chunk = warp_column / 8 + j * 2 + lane / 16;
        load_transposed(right[j], tile_b + place_in_b(row, chunk));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          multiply(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + warp_row + i * 16 + lane / 4 + half * 8;
        const int column = first_column + warp_column + j * 8 + lane % 4 * 2;
        if (row < end_row) {
          *reinterpret_cast<__nv_bfloat162*>(c + static_cast<size_t>(row) * columns + column) =
              __floats2bfloat162_rn(sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
        }
      }
    }
  }
}
