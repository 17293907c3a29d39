// The vocabulary of the border: what an op accepts, in words, and typed pointers to it.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace capmoe {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_shape(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape) {
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t axis = 0;
  for (int64_t size : shape) {
    fits = fits && (size < 0 || tensor.size(axis) == size);
    ++axis;
  }
  if (fits) return;
  std::string wanted, got;
  for (int64_t size : shape) wanted += (wanted.empty() ? "" : ", ") + (size < 0 ? "any" : std::to_string(size));
  for (int64_t i = 0; i < tensor.dim(); ++i) got += (i ? ", " : "") + std::to_string(tensor.size(i));
  STD_TORCH_CHECK(false, name, " must have shape [", wanted, "], got [", got, "]");
}

inline void check_dtype(const Tensor& tensor, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must be ", toString(dtype), ", got ",
                  toString(tensor.scalar_type()));
}

inline void check(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape, ScalarType dtype) {
  check_shape(tensor, name, shape);
  check_dtype(tensor, name, dtype);
}

// The value that goes with `name`, or an error that lists the names.
template <class T>
T parse(const char* argument, const std::string& name, std::initializer_list<std::pair<const char*, T>> choices) {
  std::string names;
  for (const auto& [choice, value] : choices) {
    if (name == choice) return value;
    names += (names.empty() ? "" : ", ") + std::string(choice);
  }
  STD_TORCH_CHECK(false, argument, " must be one of ", names, ", got ", name);
}

inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(dense(*tensor)) : std::nullopt;
}

template <class T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
const T* read(const std::optional<Tensor>& tensor) {
  return tensor ? read<T>(*tensor) : nullptr;
}

template <class T>
T* write(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(like, std::vector<int64_t>(shape), dtype);
}

}  // namespace capmoe
