// What device code may touch: cudaMalloc's memory and the tensors of the call, exact to the byte.
#include <algorithm>
#include <map>
#include <mutex>

#include "standin.h"

namespace standin {
namespace {

struct Extent {
  uint64_t base, size;
  int32_t read_only, pad;
  uint8_t* written;
};

std::mutex guard;
std::map<uint64_t, Extent> memory, tensors;  // by address
std::map<uint64_t, Extent> cut;              // tensors of which only the pieces, which are in `tensors`, may be touched

uint64_t address_of(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

const Extent* find(const std::map<uint64_t, Extent>& all, uint64_t address) {
  auto next = all.upper_bound(address);
  if (next == all.begin()) return nullptr;
  const Extent& one = std::prev(next)->second;
  return address - one.base < one.size ? &one : nullptr;
}

const Extent* find(const void* pointer) {
  const Extent* found = find(memory, address_of(pointer));
  return found ? found : find(tensors, address_of(pointer));
}

}  // namespace

bool is_device(const void* pointer) {
  const std::lock_guard lock(guard);
  return find(pointer) != nullptr;
}

bool check_range(const char* call, const void* pointer, size_t bytes, bool write) {
  const std::lock_guard lock(guard);
  if (bytes == 0) return true;
  const Extent* found = find(pointer);
  const std::string what = std::string(call) + (write ? " writes " : " reads ") + std::to_string(bytes) + " bytes";
  if (!found) return problem(cudaErrorInvalidValue, "OutOfBounds", what + " of memory that no buffer holds"), false;
  const uint64_t offset = address_of(pointer) - found->base;
  if (bytes > found->size - offset) {
    const std::string where = " at offset " + std::to_string(offset) + " of a buffer of " + std::to_string(found->size);
    return problem(cudaErrorInvalidValue, "OutOfBounds", what + where), false;
  }
  if (write && found->read_only) {
    return problem(cudaErrorInvalidValue, "ReadOnly", what + " of an input declared const"), false;
  }
  return true;
}

void add_memory(void* base, size_t bytes) {
  const std::lock_guard lock(guard);
  memory[address_of(base)] = {address_of(base), bytes, 0, 0, nullptr};
}

bool drop_memory(void* base) {
  const std::lock_guard lock(guard);
  const auto found = memory.find(address_of(base));
  if (found == memory.end()) return false;
  delete[] found->second.written;
  memory.erase(found);
  return true;
}

void forget_contents(void* base) {
  const std::lock_guard lock(guard);
  Extent& one = memory.at(address_of(base));
  one.written = new uint8_t[one.size]();
}

void mark_written(const void* pointer, size_t bytes) {
  const std::lock_guard lock(guard);
  const Extent* found = find(pointer);
  if (found && found->written) std::fill_n(found->written + (address_of(pointer) - found->base), bytes, 1);
}

}  // namespace standin

using namespace standin;

extern "C" {

// A tensor's storage; whether it is new. Given twice, once writable, it is writable.
int standin_add_tensor(uint64_t base, uint64_t bytes, int read_only) {
  const std::lock_guard lock(guard);
  if (bytes == 0) return 0;
  const auto [place, fresh] = tensors.try_emplace(base, Extent{base, bytes, read_only, 0, nullptr});
  Extent& one = place->second;
  one.size = std::max(one.size, bytes);
  one.read_only = one.read_only && read_only;
  return fresh;
}

void standin_drop_tensor(uint64_t base) {
  const std::lock_guard lock(guard);
  const auto whole = cut.find(base);
  if (whole == cut.end()) {
    tensors.erase(base);
    return;
  }
  const auto first = tensors.lower_bound(base), end = tensors.lower_bound(base + whole->second.size);
  for (auto piece = first; piece != end; ++piece) delete[] piece->second.written;
  tensors.erase(first, end);
  cut.erase(whole);
}

// For code that cuts one allocation into arrays: each is exact, holds nothing yet, and what lies between them is
// nobody's.
void standin_add_piece(const void* piece, uint64_t bytes) {
  const std::lock_guard lock(guard);
  const uint64_t base = address_of(piece);
  if (!find(cut, base)) {
    const Extent* whole = find(tensors, base);
    if (!whole) return;
    cut[whole->base] = *whole;
    tensors.erase(whole->base);
  }
  if (bytes) tensors[base] = {base, bytes, 0, 0, new uint8_t[bytes]()};
}

// Copies at most `room` of them and says how many there are.
uint64_t standin_buffers(Extent* out, uint64_t room) {
  const std::lock_guard lock(guard);
  uint64_t count = 0;
  for (const auto* all : {&memory, &tensors}) {
    for (const auto& entry : *all) {
      if (count++ < room) *out++ = entry.second;
    }
  }
  return count;
}
}
