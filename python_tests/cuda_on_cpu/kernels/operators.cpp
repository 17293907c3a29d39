// A binding as the package has one: PyTorch's stable ABI, tensors in and out, bugs by argument.
#include "operators.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <exception>
#include <vector>

extern "C" void standin_add_piece(const void* piece, uint64_t bytes);

namespace example {
namespace {

using torch::stable::Tensor;

float* data(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

// The kernel goes `beyond` elements too far.
Tensor scaled(const Tensor& x, double a, int64_t beyond) {
  Tensor y = torch::stable::new_empty(x, {x.numel()});
  scale(data(x), a, x.numel() + beyond, data(y));
  return y;
}

void scale_in_place(const Tensor& x, double a) { scale(data(x), a, x.numel(), data(x)); }

// a * a * x, the half way in memory of its own; what went wrong there is not looked at.
Tensor scaled_twice(const Tensor& x, double a, int64_t beyond) {
  Tensor half = torch::stable::new_empty(x, {x.numel()});
  Tensor y = torch::stable::new_empty(x, {x.numel()});
  try {
    scale(data(x), a, x.numel(), data(half));
    scale(data(half), a, x.numel() + beyond, data(y));
  } catch (const std::exception&) {
  }
  return y;
}

// Writes to a tensor that is no more.
void scale_into_freed_memory(const Tensor& x, double a) {
  float* gone = data(torch::stable::new_empty(x, {x.numel()}));
  scale(data(x), a, x.numel(), gone);
}

// One allocation for two arrays, two elements apart; the kernel goes `beyond` the first.
Tensor scaled_in_pieces(const Tensor& x, double a, int64_t beyond) {
  const int64_t n = x.numel();
  Tensor both = torch::stable::new_empty(x, {2 * n + 2});
  float *first = data(both), *second = first + n + 2;
  for (const float* piece : {first, second}) standin_add_piece(piece, n * sizeof(float));
  scale(data(x), a, n, second);
  scale(second, a, n, first);
  if (beyond) scale(first, 1, n + beyond, first);
  return both;
}

}  // namespace

STABLE_TORCH_LIBRARY(CAPMOE_LIBRARY, m) {
  m.def("scaled(Tensor x, float a, int beyond) -> Tensor");
  m.def("scale_in_place(Tensor(a!) x, float a) -> ()");
  m.def("scale_an_input(Tensor x, float a) -> ()");
  m.def("scale_into_freed_memory(Tensor x, float a) -> ()");
  m.def("scaled_twice(Tensor x, float a, int beyond) -> Tensor");
  m.def("scaled_in_pieces(Tensor x, float a, int beyond) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(CAPMOE_LIBRARY, CAPMOE_KEY, m) {
  m.impl("scaled", TORCH_BOX(&scaled));
  m.impl("scale_in_place", TORCH_BOX(&scale_in_place));
  m.impl("scale_an_input", TORCH_BOX(&scale_in_place));
  m.impl("scale_into_freed_memory", TORCH_BOX(&scale_into_freed_memory));
  m.impl("scaled_twice", TORCH_BOX(&scaled_twice));
  m.impl("scaled_in_pieces", TORCH_BOX(&scaled_in_pieces));
}

}  // namespace example
