// CUTLASS 3's GEMM for sm_90, built by its collective builders: TMA, mbarriers and wgmma, warps that specialise.
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

using namespace cute;
using T = cutlass::bfloat16_t;
using Row = cutlass::layout::RowMajor;
using Column = cutlass::layout::ColumnMajor;

template <class Cluster>
int multiply(const T* a, const T* b, float* d, int m, int n, int k) {
  using Tile = Shape<_128, _128, _64>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, Row, 4, float, Row, 4,
      cutlass::epilogue::collective::EpilogueScheduleAuto>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, T, Row, 8, T, Column, 8, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      cutlass::gemm::KernelTmaWarpSpecialized>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  const auto rows_of = [](int64_t length) { return make_stride(length, _1{}, int64_t{0}); };
  typename Gemm::Arguments arguments{cutlass::gemm::GemmUniversalMode::kGemm,
                                     {m, n, k, 1},
                                     {a, rows_of(k), b, rows_of(k)},
                                     {{1, 0}, nullptr, {}, d, rows_of(n)}};
  Gemm gemm;
  cutlass::Status status = gemm.can_implement(arguments);
  if (status == cutlass::Status::kSuccess) status = gemm.run(arguments);
  return static_cast<int>(status);
}

extern "C" int gemm_alone(const T* a, const T* b, float* d, int m, int n, int k) {
  return multiply<Shape<_1, _1, _1>>(a, b, d, m, n, k);
}

extern "C" int gemm_in_pairs(const T* a, const T* b, float* d, int m, int n, int k) {
  return multiply<Shape<_2, _1, _1>>(a, b, d, m, n, k);
}
