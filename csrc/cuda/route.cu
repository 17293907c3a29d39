// gate and select in one launch, for few tokens.
#include <algorithm>

#include "route.cuh"

namespace capmoe::cuda {
namespace {

// Beyond these one block takes longer than gate and select on many.
constexpr int64_t kMaxPairs = 1024, kMaxLogits = 4096, kMaxChosenPairs = 128;

template <class Layout>
int warps_for(const Select& select) {
  if (capacity_of(select, select.tokens) < select.tokens) return kRouteWarps;  // which share the experts
  const int64_t rows = ceil_div(select.tokens, Layout::kRows), pairs = ceil_div(select.tokens * select.columns, 128);
  return static_cast<int>(std::clamp<int64_t>(std::max(rows, pairs), 1, kRouteWarps));
}

template <class Layout>
RoutePlan plan_for(const Gate& gate, const Select& select, bool masked) {
  return RoutePlan(select, masked, warps_for<Layout>(select), gate_scratch_bytes<Layout>(gate));
}

}  // namespace

bool route_fits(const Gate& gate, const Select& select) {
  const int64_t pairs = select.tokens * select.columns, logits = select.tokens * select.num_experts;
  if (pairs < 1 || pairs > kMaxPairs || logits > kMaxLogits || select.num_experts > kMaxGateExperts) return false;
  const bool binds = capacity_of(select, select.tokens) < select.tokens;  // then experts must choose
  if (binds && pairs > kMaxChosenPairs) return false;
  bool fits = false;
  with_gate_layout(gate, [&](auto layout) {
    fits = int64_t{4} * plan_for<decltype(layout)>(gate, select, false).words <= kCommonSharedBytes;
  });
  return fits;
}

template <class T>
void route(const T* logits, const float* bias, const Gate& gate, const bool* token_mask, const int64_t* token_priority,
           const Select& select, const Selection& out, cudaStream_t stream) {
  with_gate_layout(gate, [&](auto layout) {
    using Layout = decltype(layout);
    const bool by_score = bias != nullptr || gate.num_groups > 1;
    const auto kernel = by_score ? route_kernel<T, Layout, true> : route_kernel<T, Layout, false>;
    const RoutePlan plan = plan_for<Layout>(gate, select, token_mask != nullptr);
    const int bytes = 4 * plan.words;
    limit_shared(kernel, kCommonSharedBytes, "route");
    kernel<<<1, 32 * warps_for<Layout>(select), bytes, stream>>>(logits, bias, gate, token_mask, token_priority, select,
                                                                 out, plan);
  });
  check_cuda(cudaGetLastError(), "route");
}

template void route(const float*, const float*, const Gate&, const bool*, const int64_t*, const Select&,
                    const Selection&, cudaStream_t);
template void route(const __nv_bfloat16*, const float*, const Gate&, const bool*, const int64_t*, const Select&,
                    const Selection&, cudaStream_t);
template void route(const __half*, const float*, const Gate&, const bool*, const int64_t*, const Select&,
                    const Selection&, cudaStream_t);

}  // namespace capmoe::cuda
