// What the files of the stand-in for libcudart share. The CUDA headers check every signature.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace standin {

// One PTX text of a fat binary. The structs of this file are mirrored in ../standin.py.
struct Image {
  const char* text;
  uint64_t size;
  int32_t compressed;
};

struct Module {
  std::vector<Image> images;
};

struct Kernel {
  Module* module;
  std::string name;
  int dynamic_shared = -1;  // what cudaFuncSetAttribute allows, -1 before it
};

struct Request {
  Module* module;
  const char* name;
  uint32_t grid[3], block[3];
  uint32_t cluster[3];  // zeros: nobody asked for clusters
  uint64_t dynamic_shared;
  int64_t allowed_dynamic_shared;  // -1: nobody asked for more than the default
  int32_t cooperative;
  void** args;
};

struct KernelFacts {
  int64_t static_shared, local_bytes, const_bytes;
  int32_t registers, max_threads, ptx_version;
};

struct Device {
  int32_t major, minor, multiprocessors, shared_per_multiprocessor, shared_per_block, threads_per_multiprocessor,
      blocks_per_multiprocessor, l2_bytes;
};

// The arguments of cuTensorMapEncodeTiled.
struct TensorMapRequest {
  uint64_t address, dims[5], strides[4];
  uint32_t box[5], element_strides[5];
  int32_t type, rank, interleave, swizzle, l2_promotion, nan_fill;
};

// The emulator's side, in Python.
struct Host {
  int (*launch)(const Request*);
  void (*note)(const char* kind, const char* call, uint64_t value);
  uint64_t (*symbol)(Module*, const char* name);  // its address, 0 where there is none
  int (*facts)(Module*, const char* name, int with_registers, KernelFacts*);
  const Device* (*device)();
  int (*tensor_map)(const TensorMapRequest*, void* out);  // whether it is one
};

// errors.cpp
extern Host* host;
cudaError_t done(cudaError_t error);  // what every call returns: it remembers the last error
cudaError_t problem(cudaError_t error, const char* kind, const std::string& text);  // also an exception in Python
cudaError_t unsupported(const char* call);
void note(const char* kind, const char* call, uint64_t value = 0);

// fatbin.cpp
Kernel* find_kernel(const void* function);
uint64_t find_symbol(const void* host_variable, size_t* size);

// buffers.cpp
bool check_range(const char* call, const void* pointer, size_t bytes, bool write);
bool is_device(const void* pointer);
void add_memory(void* base, size_t bytes);
void forget_contents(void* base);  // of add_memory: reading what nobody has written is worth a warning
void mark_written(const void* pointer, size_t bytes);
bool drop_memory(void* base);

// streams.cpp
bool valid_stream(cudaStream_t stream);

}  // namespace standin
