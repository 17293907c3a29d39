// The weighted sum of a token's expert outputs: a gather, in column order and in float32.
#include <algorithm>

#include "clones.h"
#include "convert.h"
#include "kernels.h"

namespace capmoe::cpu {
namespace {

// Sums this many columns of H at a time, so that they stay in the nearest cache.
constexpr int64_t kBlock = 1024;

CAPMOE_CLONES void add_scaled(const float* y, float weight, int64_t count, float* sum) {
  for (int64_t i = 0; i < count; ++i) sum[i] += weight * y[i];
}

CAPMOE_CLONES void add_scaled(const BFloat16* y, float weight, int64_t count, float* sum) {
  for (int64_t i = 0; i < count; ++i) sum[i] += weight * to_float(y[i]);
}

CAPMOE_CLONES void add_scaled(const Half* y, float weight, int64_t count, float* sum) {
  for (int64_t i = 0; i < count; ++i) sum[i] += weight * to_float(y[i]);
}

CAPMOE_CLONES void store(const float* sum, int64_t count, float* out) { std::copy_n(sum, count, out); }

CAPMOE_CLONES void store(const float* sum, int64_t count, BFloat16* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = from_float<BFloat16>(sum[i]);
}

CAPMOE_CLONES void store(const float* sum, int64_t count, Half* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = from_float<Half>(sum[i]);
}

}  // namespace

template <class T>
void combine(const T* y, const int32_t* rows, const float* weights, int64_t tokens, int64_t columns, int64_t hidden,
             T* out, const ParallelFor& parallel_for) {
  parallel_for(tokens, [&](int64_t begin, int64_t end) {
    float sum[kBlock];
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < hidden; h += kBlock) {
        const int64_t count = std::min(kBlock, hidden - h);
        std::fill_n(sum, count, 0.0f);
        for (int64_t pair = t * columns; pair < (t + 1) * columns; ++pair) {
          if (rows[pair] >= 0) add_scaled(y + rows[pair] * hidden + h, weights[pair], count, sum);
        }
        store(sum, count, out + t * hidden + h);
      }
    }
  });
}

template void combine(const float*, const int32_t*, const float*, int64_t, int64_t, int64_t, float*,
                      const ParallelFor&);
template void combine(const BFloat16*, const int32_t*, const float*, int64_t, int64_t, int64_t, BFloat16*,
                      const ParallelFor&);
template void combine(const Half*, const int32_t*, const float*, int64_t, int64_t, int64_t, Half*, const ParallelFor&);

}  // namespace capmoe::cpu
