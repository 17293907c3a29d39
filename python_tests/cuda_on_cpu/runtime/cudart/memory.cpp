// cudaMalloc, copies and fills. Device memory is host memory that buffers.cpp knows.
#include <cstdlib>
#include <cstring>

#include "standin.h"

namespace standin {
namespace {

constexpr size_t kAlignment = 256;

cudaError_t allocate(void** out, size_t bytes, const char* call) {
  note("allocate", call, bytes);
  *out = nullptr;
  if (bytes == 0) return done(cudaSuccess);
  *out = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  if (!*out) return done(cudaErrorMemoryAllocation);
  std::memset(*out, 0xff, bytes);  // NaN in every float type, so that an unwritten value is seen
  add_memory(*out, bytes);
  forget_contents(*out);
  return done(cudaSuccess);
}

cudaError_t release(void* pointer, const char* call) {
  if (!pointer) return done(cudaSuccess);
  if (!drop_memory(pointer)) {
    return problem(cudaErrorInvalidValue, "Invalid", std::string(call) + " of memory that is not allocated");
  }
  note("free", call);
  std::free(pointer);
  return done(cudaSuccess);
}

// What a copy touches on the device must be there; what it touches on the host is the caller's.
cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, const char* call) {
  const bool any = kind == cudaMemcpyDefault;
  const bool to_device = any ? is_device(to) : kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = any ? is_device(from) : kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (to_device && !check_range(call, to, bytes, true)) return cudaPeekAtLastError();
  if (from_device && !check_range(call, from, bytes, false)) return cudaPeekAtLastError();
  std::memmove(to, from, bytes);
  mark_written(to, bytes);
  note("copy", call, bytes);
  // With pageable memory on the other side a copy waits, one to the host whatever its name says.
  const bool asynchronous = std::strstr(call, "Async") != nullptr;
  if (!(to_device && (from_device || asynchronous))) note("synchronise", call);
  return done(cudaSuccess);
}

cudaError_t fill(void* to, int value, size_t bytes, const char* call) {
  if (!check_range(call, to, bytes, true)) return cudaPeekAtLastError();
  std::memset(to, value, bytes);
  mark_written(to, bytes);
  note("fill", call, bytes);
  return done(cudaSuccess);
}

cudaError_t copy_symbol(const void* symbol, void* other, size_t bytes, size_t offset, bool to_symbol,
                        const char* call) {
  size_t size = 0;
  char* at = reinterpret_cast<char*>(find_symbol(symbol, &size));
  if (!at) return done(cudaErrorInvalidSymbol);
  if (offset > size || bytes > size - offset) {
    return problem(cudaErrorInvalidValue, "OutOfBounds",
                   std::string(call) + " of " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                       " of a variable of " + std::to_string(size));
  }
  to_symbol ? std::memcpy(at + offset, other, bytes) : std::memcpy(other, at + offset, bytes);
  note("copy", call, bytes);
  if (!to_symbol || std::strstr(call, "Async") == nullptr) note("synchronise", call);
  return done(cudaSuccess);
}

}  // namespace
}  // namespace standin

using namespace standin;

extern "C" {

cudaError_t cudaMalloc(void** out, size_t bytes) { return allocate(out, bytes, "cudaMalloc"); }
cudaError_t cudaMallocAsync(void** out, size_t bytes, cudaStream_t) { return allocate(out, bytes, "cudaMallocAsync"); }

cudaError_t cudaFree(void* pointer) {
  note("synchronise", "cudaFree");
  return release(pointer, "cudaFree");
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return release(pointer, "cudaFreeAsync"); }

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return copy(to, from, bytes, kind, "cudaMemcpy");
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return copy(to, from, bytes, kind, "cudaMemcpyAsync");
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) { return fill(to, value, bytes, "cudaMemset"); }
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return fill(to, value, bytes, "cudaMemsetAsync");
}

cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes, size_t offset, cudaMemcpyKind) {
  return copy_symbol(symbol, const_cast<void*>(from), bytes, offset, true, "cudaMemcpyToSymbol");
}
cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* from, size_t bytes, size_t offset, cudaMemcpyKind,
                                    cudaStream_t) {
  return copy_symbol(symbol, const_cast<void*>(from), bytes, offset, true, "cudaMemcpyToSymbolAsync");
}
cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, size_t bytes, size_t offset, cudaMemcpyKind) {
  return copy_symbol(symbol, to, bytes, offset, false, "cudaMemcpyFromSymbol");
}
cudaError_t cudaMemcpyFromSymbolAsync(void* to, const void* symbol, size_t bytes, size_t offset, cudaMemcpyKind,
                                      cudaStream_t) {
  return copy_symbol(symbol, to, bytes, offset, false, "cudaMemcpyFromSymbolAsync");
}
}
