// Checked memory: bounds, alignment and read-only inputs; the counts of sectors and wavefronts.
#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "machine.h"

namespace emu {

void fault(FaultKind kind, int lane, const char* format, ...) {
  char text[400];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  throw FaultError{kind, lane, text};
}

namespace {

const Buffer& buffer_at(Machine& m, uint64_t address, int bytes, int lane, bool write) {
  const auto holds = [&](const Buffer& b) { return address >= b.base && address + bytes <= b.base + b.size; };
  if (m.last_buffer && holds(*m.last_buffer)) return *m.last_buffer;
  const Buffer* near = nullptr;
  for (int64_t i = 0; i < m.launch.num_buffers; ++i) {
    const Buffer& b = m.launch.buffers[i];
    if (holds(b)) return *(m.last_buffer = &b);
    const int64_t offset = static_cast<int64_t>(address - b.base);
    if (offset >= -4096 && offset < static_cast<int64_t>(b.size) + 4096) near = &b;
  }
  if (near) {
    fault(kOutOfBounds, lane, "global %s of %d bytes at offset %lld of a buffer of %llu bytes", verb(write), bytes,
          static_cast<long long>(address - near->base), static_cast<unsigned long long>(near->size));
  }
  fault(kOutOfBounds, lane, "global %s of %d bytes at 0x%llx, which is in no buffer", verb(write), bytes,
        static_cast<unsigned long long>(address));
}

void check_alignment(uint64_t address, int bytes, int lane, const char* space) {
  if (address % bytes == 0) return;
  fault(kMisaligned, lane, "%s access of %d bytes at 0x%llx is not aligned to its size", space, bytes,
        static_cast<unsigned long long>(address));
}

uint8_t* shared_at(Warp& w, int lane, uint64_t address, int bytes, bool write, bool atomic) {
  Block& b = *w.block;
  if (address + bytes > b.shared.size()) {
    fault(kOutOfBounds, lane, "shared %s of %d bytes at %llu of %zu", verb(write), bytes,
          static_cast<unsigned long long>(address), b.shared.size());
  }
  check_alignment(address, bytes, lane, "shared");
  touch_shared(w, lane, address, bytes, write, atomic);
  if (atomic) synchronise_warps(w, address);
  return b.shared.data() + address;
}

uint8_t* local_at(Warp& w, int lane, uint64_t address, int bytes, bool write) {
  const uint64_t size = w.block->machine->program.local_bytes;
  if (address + bytes > size) {
    fault(kOutOfBounds, lane, "local %s of %d bytes at %llu of %llu", verb(write), bytes,
          static_cast<unsigned long long>(address), static_cast<unsigned long long>(size));
  }
  check_alignment(address, bytes, lane, "local");
  return w.local.data() + lane * size + address;
}

uint8_t* param_at(Warp& w, int lane, uint64_t address, int bytes, bool write) {
  const Launch& launch = w.block->machine->launch;
  if (address + bytes > static_cast<uint64_t>(launch.param_bytes)) {
    fault(kOutOfBounds, lane, "read of %d bytes at %llu of %lld bytes of parameters", bytes,
          static_cast<unsigned long long>(address), static_cast<long long>(launch.param_bytes));
  }
  if (write) fault(kReadOnly, lane, "write to a kernel parameter");
  check_alignment(address, bytes, lane, "parameter");
  return const_cast<uint8_t*>(launch.params) + address;
}

bool in(uint64_t address, uint64_t window) { return address >= window && address < window + kWindowSize; }

int wavefronts(const uint64_t* addresses, uint32_t mask, int bytes) {
  const int at_once = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  int total = 0;
  for (int first = 0; first < kLanes; first += at_once) {
    uint64_t words[32 * 4];
    int count = 0, load[32] = {}, most = 0;
    for (int lane = first; lane < first + at_once; ++lane) {
      if (!has(mask, lane)) continue;
      for (uint64_t word = addresses[lane] / 4; word <= (addresses[lane] + bytes - 1) / 4; ++word) {
        if (std::find(words, words + count, word) != words + count) continue;
        words[count++] = word;
        most = std::max(most, ++load[word % 32]);
      }
    }
    total += most;
  }
  return total;
}

int sectors(const uint64_t* addresses, uint32_t mask, int bytes) {
  uint64_t seen[kLanes * 2];
  int count = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    for (uint64_t s = addresses[lane] / 32; s <= (addresses[lane] + bytes - 1) / 32; ++s) {
      bool known = false;
      for (int i = count - 1; i >= 0 && !known; --i) known = seen[i] == s;
      if (!known && count < kLanes * 2) seen[count++] = s;
    }
  }
  return count;
}

}  // namespace

uint8_t* access(Warp& w, int lane, Space space, uint64_t address, int bytes, bool write, bool atomic) {
  if (space == Space::shared) return shared_at(w, lane, address & 0xffffffff, bytes, write, atomic);
  if (space == Space::local) return local_at(w, lane, address, bytes, write);
  if (space == Space::param) return param_at(w, lane, address, bytes, write);
  if (space == Space::generic) {
    if (in(address, kSharedWindow)) return shared_at(w, lane, address - kSharedWindow, bytes, write, atomic);
    if (in(address, kLocalWindow)) return local_at(w, lane, address - kLocalWindow, bytes, write);
    if (in(address, kParamWindow)) return param_at(w, lane, address - kParamWindow, bytes, write);
  }
  const Buffer& buffer = buffer_at(*w.block->machine, address, bytes, lane, write);
  check_alignment(address, bytes, lane, "global");
  if (write && buffer.read_only) {
    fault(kReadOnly, lane, "write at offset %llu of an input declared const",
          static_cast<unsigned long long>(address - buffer.base));
  }
  touch_global(w, lane, buffer, address, bytes, write, atomic);
  return reinterpret_cast<uint8_t*>(address);
}

void count_access(Warp& w, Space space, const uint64_t* addresses, uint32_t mask, int bytes, bool write) {
  Counts& c = w.block->machine->counts;
  uint32_t shared = 0, global = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const bool window = space == Space::generic && in(addresses[lane], kSharedWindow);
    const bool elsewhere = space == Space::generic && addresses[lane] >= kSharedWindow && !window;
    if (space == Space::shared || window) {
      shared |= 1u << lane;
    } else if (space == Space::global || (space == Space::generic && !elsewhere)) {
      global |= 1u << lane;
    }
  }
  if (shared) {
    ++c.shared_requests;
    c.shared_wavefronts += wavefronts(addresses, shared, bytes);
  }
  if (!global) return;
  const uint64_t total = static_cast<uint64_t>(__builtin_popcount(global)) * bytes;
  if (write) {
    ++c.global_store_requests, c.global_store_sectors += sectors(addresses, global, bytes);
    c.global_store_bytes += total;
  } else {
    ++c.global_load_requests, c.global_load_sectors += sectors(addresses, global, bytes);
    c.global_load_bytes += total;
  }
}

void count_rows(Warp& w, const uint32_t* addresses, int rows) {
  int load[32] = {}, most = 0;
  for (int row = 0; row < rows; ++row) {
    if (std::find(addresses, addresses + row, addresses[row]) != addresses + row) continue;
    for (int word = 0; word < 4; ++word) most = std::max(most, ++load[(addresses[row] / 4 + word) % 32]);
  }
  ++w.block->machine->counts.shared_requests;
  w.block->machine->counts.shared_wavefronts += most;
}

}  // namespace emu
