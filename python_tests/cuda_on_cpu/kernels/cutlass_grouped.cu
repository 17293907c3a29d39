// CUTLASS's GemmGrouped for sm_80, unmodified: a persistent kernel that finds its tiles in a list of problems.
#include <cutlass/gemm/device/gemm_grouped.h>
#include <cutlass/gemm/kernel/default_gemm_grouped.h>

using Row = cutlass::layout::RowMajor;
using Column = cutlass::layout::ColumnMajor;
using cutlass::gemm::GemmShape;
using T = cutlass::bfloat16_t;

using Epilogue = cutlass::epilogue::thread::LinearCombination<T, 8, float, float>;
using Kernel = typename cutlass::gemm::kernel::DefaultGemmGrouped<
    T, Row, cutlass::ComplexTransform::kNone, 8, T, Column, cutlass::ComplexTransform::kNone, 8, T, Row, float,
    cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, GemmShape<64, 64, 32>, GemmShape<32, 32, 32>,
    GemmShape<16, 8, 16>, Epilogue, cutlass::gemm::threadblock::GemmBatchedIdentityThreadblockSwizzle, 4,
    cutlass::gemm::kernel::GroupScheduleMode::kDeviceOnly>::GemmKernel;
using Gemm = cutlass::gemm::device::GemmGrouped<Kernel>;

// Per problem: m, n, k, then where A [m, k], B [n, k] and D [m, n] are, and the lengths of their rows.
extern "C" int gemm_grouped(cutlass::gemm::GemmCoord* problems, int count, int blocks, T** a, T** b, T** d,
                            int64_t* a_rows, int64_t* b_rows, int64_t* d_rows) {
  const Gemm::Arguments arguments(problems, count, blocks, {1, 0}, a, b, d, d, a_rows, b_rows, d_rows, d_rows);
  Gemm gemm;
  cutlass::Status status = gemm.initialize(arguments);
  if (status == cutlass::Status::kSuccess) status = gemm.run();
  return static_cast<int>(status);
}
