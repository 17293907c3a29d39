// Rows of tokens, grouped by expert.
#include <cstring>

#include "kernels.h"

namespace capmoe::cpu {

void dispatch(const void* hidden_states, const int32_t* row_tokens, int64_t rows, int64_t row_bytes, void* x,
              const ParallelFor& parallel_for) {
  const char* from = static_cast<const char*>(hidden_states);
  char* to = static_cast<char*>(x);
  parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (row_tokens[row] >= 0) std::memcpy(to + row * row_bytes, from + row_tokens[row] * row_bytes, row_bytes);
    }
  });
}

}  // namespace capmoe::cpu
