// CUTLASS's device::Gemm for sm_80, unmodified: its own host code computes parameters and launches.
#include <cutlass/gemm/device/gemm.h>

using Row = cutlass::layout::RowMajor;
using Column = cutlass::layout::ColumnMajor;
using cutlass::gemm::GemmShape;

// D = A B, with A [m, k] and B [n, k] by rows. `kAlignment` elements lie side by side in every access.
template <class T, class Accumulator, class Tile, class Warp, class Instruction, int kStages, int kAlignment>
int multiply(const T* a, const T* b, Accumulator* d, int m, int n, int k) {
  using Epilogue = cutlass::epilogue::thread::LinearCombination<Accumulator, 4, Accumulator, Accumulator>;
  using Gemm = cutlass::gemm::device::Gemm<T, Row, T, Column, Accumulator, Row, Accumulator,
                                           cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, Tile, Warp, Instruction,
                                           Epilogue, cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>,
                                           kStages, kAlignment, kAlignment>;
  Gemm gemm;
  const typename Gemm::Arguments arguments({m, n, k}, {a, k}, {b, k}, {d, n}, {d, n}, {1, 0});
  const cutlass::Status status = gemm(arguments);
  return static_cast<int>(status);
}

extern "C" int gemm_bf16(const cutlass::bfloat16_t* a, const cutlass::bfloat16_t* b, float* d, int m, int n, int k) {
  return multiply<cutlass::bfloat16_t, float, GemmShape<128, 128, 32>, GemmShape<64, 64, 32>, GemmShape<16, 8, 16>, 3,
                  8>(a, b, d, m, n, k);
}

extern "C" int gemm_f16(const cutlass::half_t* a, const cutlass::half_t* b, float* d, int m, int n, int k) {
  return multiply<cutlass::half_t, float, GemmShape<64, 64, 32>, GemmShape<32, 32, 32>, GemmShape<16, 8, 16>, 4, 8>(
      a, b, d, m, n, k);
}

extern "C" int gemm_tf32(const float* a, const float* b, float* d, int m, int n, int k) {
  return multiply<cutlass::tfloat32_t, float, GemmShape<64, 64, 16>, GemmShape<32, 32, 16>, GemmShape<16, 8, 8>, 3, 4>(
      reinterpret_cast<const cutlass::tfloat32_t*>(a), reinterpret_cast<const cutlass::tfloat32_t*>(b), d, m, n, k);
}

extern "C" int gemm_s8(const int8_t* a, const int8_t* b, int32_t* d, int m, int n, int k) {
  return multiply<int8_t, int32_t, GemmShape<64, 64, 64>, GemmShape<32, 32, 64>, GemmShape<16, 8, 32>, 3, 16>(a, b, d,
                                                                                                              m, n, k);
}
