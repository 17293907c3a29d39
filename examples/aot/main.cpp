// Runs a layer that export.py compiled, without Python: aot_moe PACKAGE LIBRARY CASE...
//
// LIBRARY is the extension module beside the Python package, capmoe_kernels/_cpu.*.so. It holds the kernels; the
// operator's schema, which Python declares, came along in the package. A CASE is tokens and what Python made of them.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/library.h>

#include <filesystem>
#include <iostream>
#include <stdexcept>
#include <string>

using torch::inductor::AOTIModelPackageLoader;

// [2, T, H]: the tokens, and the outputs to compare with.
at::Tensor read_case(const std::string& path, int64_t hidden_size) {
  const int64_t numbers = static_cast<int64_t>(std::filesystem::file_size(path) / sizeof(float));
  return at::from_file(path, /*shared=*/false, numbers, at::kFloat).view({2, -1, hidden_size});
}

int run(int count, char** arguments) {
  if (count < 4) throw std::invalid_argument("usage: aot_moe PACKAGE LIBRARY CASE...");
  const std::string package = arguments[1];
  const auto metadata = AOTIModelPackageLoader::load_metadata_from_package(package, "model");
  torch::Library operators(torch::Library::FRAGMENT, "capmoe", std::nullopt, __FILE__, __LINE__);
  operators.def(metadata.at("schema").c_str());
  if (dlopen(arguments[2], RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());

  AOTIModelPackageLoader layer(package);
  int different = 0;
  for (int i = 3; i < count; ++i) {
    const at::Tensor both = read_case(arguments[i], std::stol(metadata.at("hidden_size")));
    const at::Tensor out = layer.run({both[0]})[0];
    const bool same = at::equal(out, both[1]);
    std::cout << "T = " << both.size(1) << ": " << (same ? "the same bits as in Python" : "DIFFERENT") << '\n';
    different += !same;
  }
  return different == 0 ? 0 : 1;
}

int main(int count, char** arguments) {
  try {
    return run(count, arguments);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 2;
  }
}
