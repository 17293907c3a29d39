// The grouped MLP for any processor: vectors of four, in whatever the compiler makes of them.
#include <utility>

#define CAPMOE_LANES 4
#include "grouped_mlp_float.h"

namespace capmoe::cpu {

#if defined(__aarch64__)
constexpr int kTokens = 6;  // 24 sums in 32 registers
#else
constexpr int kTokens = 2;  // 8 sums in 16 registers
#endif

template <class T>
void grouped_mlp_scalar(const GroupedMlpArgs<T>& args) {
  Layer<FloatPath<T, kTokens, 1>>(args).run();
}

template void grouped_mlp_scalar(const GroupedMlpArgs<float>&);
template void grouped_mlp_scalar(const GroupedMlpArgs<BFloat16>&);
template void grouped_mlp_scalar(const GroupedMlpArgs<Half>&);

}  // namespace capmoe::cpu
