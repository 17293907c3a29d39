// What nvcc's static initialisers register: fat binaries with their PTX, kernels and variables.
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <utility>

#include "standin.h"

namespace standin {
namespace {

constexpr uint32_t kFatMagic = 0xba55ed50;
constexpr uint16_t kPtx = 1;
constexpr uint64_t kCompressed = 0x2000 | 0x8000;  // LZ4, Zstandard

// As nvcc 13.0 writes them. Entries follow each other; the header's size says where the text begins.
struct FatHeader {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;
};
struct FatEntry {
  uint16_t kind, version;
  uint32_t header_bytes;
  uint64_t bytes;
  uint32_t unused[6];
  uint64_t flags;
};
struct FatWrapper {
  int magic, version;
  const char* data;
  void* rest;
};

struct Symbol {
  Module* module;
  std::string name;
  size_t size;
};

// Made on first use: the static initialisers of an extension may run before this file's.
struct Registry {
  std::map<const void*, std::unique_ptr<Kernel>> kernels;
  std::map<const void*, Symbol> symbols;
};

Registry& registry() {
  static Registry all;
  return all;
}

std::vector<Image> images_of(const char* data) {
  std::vector<Image> out;
  FatHeader header;
  std::memcpy(&header, data, sizeof(header));
  if (header.magic != kFatMagic) return out;
  const char* at = data + header.header_bytes;
  for (const char* end = at + header.bytes; at < end;) {
    FatEntry entry;
    std::memcpy(&entry, at, sizeof(entry));
    const char* text = at + entry.header_bytes;
    if (entry.kind == kPtx) out.push_back({text, entry.bytes, (entry.flags & kCompressed) != 0});
    at = text + entry.bytes;
  }
  return out;
}

}  // namespace

Kernel* find_kernel(const void* function) {
  const auto found = registry().kernels.find(function);
  if (found != registry().kernels.end()) return found->second.get();
  for (const auto& entry : registry().kernels) {  // __cudaGetKernel gives these out
    if (entry.second.get() == function) return entry.second.get();
  }
  return nullptr;
}

uint64_t find_symbol(const void* host_variable, size_t* size) {
  const auto found = registry().symbols.find(host_variable);
  if (found == registry().symbols.end() || !host) return 0;
  *size = found->second.size;
  return host->symbol(found->second.module, found->second.name.c_str());
}

}  // namespace standin

using namespace standin;

extern "C" {

uint64_t standin_images(const Module* module, const Image** first) {
  *first = module->images.data();
  return module->images.size();
}

// Kernel number `index` of all that are registered; 0 beyond the last.
int standin_kernel(uint64_t index, const Module** module, const char** name) {
  const auto& kernels = registry().kernels;
  if (index >= kernels.size()) return 0;
  const Kernel& kernel = *std::next(kernels.begin(), static_cast<ptrdiff_t>(index))->second;
  *module = kernel.module;
  *name = kernel.name.c_str();
  return 1;
}

void** __cudaRegisterFatBinary(void* wrapper) {
  return reinterpret_cast<void**>(new Module{images_of(static_cast<FatWrapper*>(wrapper)->data)});
}

void __cudaRegisterFatBinaryEnd(void**) {}

// The module stays: Python may still hold kernels of it while the process ends.
void __cudaUnregisterFatBinary(void**) {}

char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void** module, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {
  registry().kernels[function].reset(new Kernel{reinterpret_cast<Module*>(module), name});
}

void __cudaRegisterVar(void** module, char* variable, char*, const char* name, int, size_t size, int, int) {
  registry().symbols[variable] = {reinterpret_cast<Module*>(module), name, size};
}

void __cudaRegisterManagedVar(void**, void**, char*, const char*, int, size_t, int, int) {
  unsupported("__cudaRegisterManagedVar");
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(find_kernel(function));
  return done(*kernel ? cudaSuccess : cudaErrorInvalidDeviceFunction);
}

cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
  size_t size = 0;
  *address = reinterpret_cast<void*>(find_symbol(symbol, &size));
  return done(*address ? cudaSuccess : cudaErrorInvalidSymbol);
}

cudaError_t cudaGetSymbolSize(size_t* size, const void* symbol) {
  return done(find_symbol(symbol, size) ? cudaSuccess : cudaErrorInvalidSymbol);
}
}
