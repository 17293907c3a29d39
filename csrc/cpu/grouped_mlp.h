// What the grouped MLP's driver (grouped_mlp.cpp) and its instruction sets (grouped_mlp_<isa>.cpp) share.
#pragma once

#include <vector>

#include "packed.h"

namespace capmoe::cpu {

// grouped_mlp's arguments.
template <class T>
struct GroupedMlpArgs {
  const T* x;
  const int32_t* row_tokens;
  const T* gate_up_proj;
  const T* gate_up_bias;
  const T* down_proj;
  const T* down_bias;
  const int32_t* expert_offsets;
  const int32_t* tokens_per_expert;
  GroupedMlp config;
  T* y;
  bool y_is_large;  // beyond any cache, and its rows are whole cache lines
  const ParallelFor* parallel_for;
};

// Some rows of one expert, a whole number of tiles but at the expert's end.
struct RowBlock {
  int64_t expert;
  int64_t row;   // of the packed buffer
  int64_t rows;  // at least 1
  int64_t tile;  // the first row's tile, counted from the first expert's
};

// Cuts the rows of experts [begin, end) into blocks of at most `max_rows`, a multiple of `tile_rows`.
std::vector<RowBlock> row_blocks(const int32_t* expert_offsets, const int32_t* tokens_per_expert, int64_t begin,
                                 int64_t end, int64_t max_rows, int64_t tile_rows);

// Asks for huge pages where memory is large: it is written once, and the faults of small pages would show.
void wish_for_huge_pages(void* data, int64_t bytes);

struct Memory {
  void* data;
  int64_t bytes;
};

// Uninitialised memory, aligned to at least a cache line. A thread keeps some of what it gives back.
class Buffer {
 public:
  explicit Buffer(int64_t bytes);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  template <class P>
  P* as() const {
    return static_cast<P*>(memory_.data);
  }

 private:
  const Memory memory_;
};

// One function per instruction set; the caller has checked that the processor has it.
template <class T>
void grouped_mlp_scalar(const GroupedMlpArgs<T>& args);
#if defined(__x86_64__)
template <class T>
void grouped_mlp_avx2(const GroupedMlpArgs<T>& args);
template <class T>
void grouped_mlp_avx512(const GroupedMlpArgs<T>& args);
void grouped_mlp_avx512_bf16(const GroupedMlpArgs<BFloat16>& args);
void grouped_mlp_amx(const GroupedMlpArgs<BFloat16>& args);
#endif

}  // namespace capmoe::cpu
