// Experts.pack(): weights into the layout of packed.h, once.
#include "packed.h"

namespace capmoe::cpu {
namespace {

template <class T>
void pack_block(const PlainMatrix<T>& matrix, int64_t block, T* to) {
  constexpr int64_t kPair = kPairOf<T>;
  const int64_t padded = padded_columns<T>(matrix.columns);
  for (int64_t i = 0; i < kBlock; ++i) {
    const T* row = matrix.row(block, i);
    T* out = to + i * kPair;
    for (int64_t k = 0; k < padded; ++k) {
      out[k / kPair * kPair * kBlock + k % kPair] = row != nullptr && k < matrix.columns ? row[k] : T{};
    }
  }
}

}  // namespace

template <class T>
void pack(const T* weights, int64_t experts, int64_t rows, int64_t columns, bool gated, bool interleaved, T* out,
          const ParallelFor& parallel_for) {
  const PlainMatrix<T> one{weights, gated ? rows / 2 : rows, columns, gated, interleaved};
  const int64_t blocks = one.blocks(), block_size = padded_columns<T>(columns) * kBlock;
  parallel_for(experts * blocks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      PlainMatrix<T> matrix = one;
      matrix.data += i / blocks * rows * columns;
      pack_block(matrix, i % blocks, out + i * block_size);
    }
  });
}

template void pack(const float*, int64_t, int64_t, int64_t, bool, bool, float*, const ParallelFor&);
template void pack(const BFloat16*, int64_t, int64_t, int64_t, bool, bool, BFloat16*, const ParallelFor&);
template void pack(const Half*, int64_t, int64_t, int64_t, bool, bool, Half*, const ParallelFor&);

}  // namespace capmoe::cpu
