"""A CUDA GEMM on wgmma: C = A B in float, two warpgroups of 64 rows each and 64 columns.

Tiles of 64 in K are stored by the threads themselves, in any canonical layout, into two buffers;
one group of wgmma stays under way while the next tile is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

ACCUMULATORS = ", ".join(f"%{i}" for i in range(32))
INOUT = ", ".join(f'"+f"(d[{i}])' for i in range(32))

KERNEL = r"""
namespace NAME {
constexpr int SPAN = SWIZZLE ? SWIZZLE : 16;  // bytes of a row of the layout
constexpr bool A_MN = A_MN_MAJOR, B_MN = B_MN_MAJOR;

__device__ uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  constexpr uint64_t mode = SWIZZLE == 128 ? 1 : SWIZZLE == 64 ? 2 : SWIZZLE == 32 ? 3 : 0;
  const uint64_t strides = uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32;
  return (address & 0x3ffff) >> 4 | strides | mode << 62;
}

// Byte of an element in a tile of ROWS x 64. Without a swizzle 8 x 16 bytes lie together.
template <bool MN, int ROWS>
__device__ uint32_t place(int mn, int k) {
  const int along = MN ? mn : k, across = MN ? k : mn, lines = MN ? 64 : ROWS;
  const uint32_t chunk = along * 2 / SPAN, within = along * 2 % SPAN;
  if (SWIZZLE == 0 && MN) return (k / 8) * ROWS * 16 + (mn / 8) * 128 + k % 8 * 16 + within;
  const uint32_t at = chunk * lines * SPAN + across * SPAN + within;
  return SWIZZLE ? at ^ ((at >> 7 & (SPAN / 16 - 1)) << 4) : at;
}

// The operand of the k-th wgmma of a tile.
template <bool MN, int ROWS>
__device__ uint64_t operand(uint32_t tile, int k) {
  if (MN && SWIZZLE) return descriptor(tile + k * 16 * SPAN, 64 * SPAN, 8 * SPAN);
  if (MN) return descriptor(tile + k * 2 * ROWS * 16, ROWS * 16, 128);
  if (SWIZZLE) return descriptor(tile + k * 32 / SPAN * ROWS * SPAN + k * 32 % SPAN, 16, 8 * SPAN);
  return descriptor(tile + k * 2 * ROWS * 16, ROWS * 16, 128);
}

// Rows from `mn` and columns from `k` of a matrix whose contiguous dimension has `pitch` elements.
template <bool MN, int ROWS>
__device__ void store_tile(char* tile, const T* from, int mn, int k, int pitch) {
  constexpr int ALONG = MN ? ROWS : 64;
  for (int i = threadIdx.x; i < ROWS * 64 / 8; i += blockDim.x) {
    const int along = i * 8 % ALONG, across = i * 8 / ALONG;
    const int first = MN ? (k + across) * pitch + mn : (mn + across) * pitch + k;
    const uint32_t at = MN ? place<MN, ROWS>(along, across) : place<MN, ROWS>(across, along);
    *reinterpret_cast<uint4*>(tile + at) = *reinterpret_cast<const uint4*>(from + first + along);
  }
}

__device__ void keep(float (&d)[32]) {
  for (float& x : d) asm volatile("" : "+f"(x)::"memory");
}

__device__ void multiply(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.OPCODE.OPCODE {ACCUMULATORS}, "
      "%32, %33, 1, 1, 1, %34, %35;"
      : INOUT
      : "l"(a), "l"(b), "n"(TRANSPOSE_A), "n"(TRANSPOSE_B));
}

extern "C" __global__ void __launch_bounds__(256, 1)
NAME(const T* a, const T* b, float* c, int rows, int depth) {
  extern __shared__ __align__(1024) char buffers[];
  constexpr int TILE_A = 128 * 128, STAGE = TILE_A + 64 * 128;
  const int group = threadIdx.x / 128;
  float d[32];
  for (float& x : d) x = 0;
  for (int tile = 0; tile < depth / 64; ++tile) {
    char* stage = buffers + tile % 2 * STAGE;
    for (int g = 0; g < 2; ++g) {
      store_tile<A_MN, 64>(stage + g * TILE_A / 2, a, g * 64, tile * 64, A_MN ? rows : depth);
    }
    store_tile<B_MN, 64>(stage + TILE_A, b, 0, tile * 64, B_MN ? 64 : depth);
    asm volatile("fence.proxy.async;" ::: "memory");
    __syncthreads();
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(stage));
    keep(d);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int k = 0; k < 4; ++k) {
      multiply(d, operand<A_MN, 64>(at + group * TILE_A / 2, k), operand<B_MN, 64>(at + TILE_A, k));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");  // the other buffer is free
    __syncthreads();
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  keep(d);
  for (int i = 0; i < 32; ++i) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = warp * 16 + lane / 4 + i / 2 % 2 * 8;
    c[row * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
  }
}
}  // namespace NAME
"""


@dataclass(frozen=True)
class Variant:
    name: str
    swizzle: int = 128
    a_mn: bool = False
    b_mn: bool = False
    dtype: str = "bf16"

    def source(self) -> str:
        words = {
            "NAME": self.name,
            "SWIZZLE": str(self.swizzle),
            "A_MN_MAJOR": str(int(self.a_mn)),
            "B_MN_MAJOR": str(int(self.b_mn)),
            "OPCODE": self.dtype,
            "TRANSPOSE_A": "A_MN",
            "TRANSPOSE_B": "B_MN",
            "ACCUMULATORS": ACCUMULATORS,
            "INOUT": INOUT,
            "const T*": "const uint16_t*",
        }
        text = KERNEL
        for word, value in words.items():
            text = text.replace(word, value)
        return text


def translation_unit(sources: list[str]) -> str:
    return "#include <cstdint>\n" + "".join(sources)
