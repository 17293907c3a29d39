// Checked memory: bounds, alignment and read-only inputs; the counts of sectors and wavefronts.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <utility>

#include "cluster.h"

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
  const auto holds = [&](const Buffer& b) {
    const uint64_t offset = address - b.base;
    return address >= b.base && offset <= b.size && static_cast<uint64_t>(bytes) <= b.size - offset;
  };
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
  const bool power = (bytes & (bytes - 1)) == 0;
  if ((power ? address & (bytes - 1) : address % bytes) == 0) return;
  fault(kMisaligned, lane, "%s access of %d bytes at 0x%llx is not aligned to its size", space, bytes,
        static_cast<unsigned long long>(address));
}

void check_bounds(uint64_t address, int bytes, uint64_t size, int lane, const char* space, bool write) {
  if (address <= size && static_cast<uint64_t>(bytes) <= size - address) return;
  fault(kOutOfBounds, lane, "%s %s of %d bytes at %llu of %llu", space, verb(write), bytes,
        static_cast<unsigned long long>(address), static_cast<unsigned long long>(size));
}

uint8_t* shared_at(Warp& w, int lane, uint64_t address, int bytes, const Use& use) {
  Block& b = *w.block;
  check_bounds(address, bytes, b.shared.size(), lane, "shared", use.write);
  check_alignment(address, bytes, lane, "shared");
  touch_shared(b, w, lane, address, bytes, use);
  return b.shared.data() + address;
}

uint8_t* cluster_at(Warp& w, int lane, uint64_t address, int bytes, const Use& use) {
  Block& b = block_of(w, lane, address);
  check_bounds(address, bytes, b.shared.size(), lane, "shared", use.write);
  check_alignment(address, bytes, lane, "shared");
  touch_shared(b, w, lane, address, bytes, use);
  return b.shared.data() + address;
}

uint8_t* local_at(Warp& w, int lane, uint64_t address, int bytes, const Use& use) {
  const uint64_t size = w.block->machine->program.local_bytes;
  check_bounds(address, bytes, size, lane, "local", use.write);
  check_alignment(address, bytes, lane, "local");
  return w.local.data() + lane * size + address;
}

uint8_t* param_at(Warp& w, int lane, uint64_t address, int bytes, const Use& use) {
  const Launch& launch = w.block->machine->launch;
  check_bounds(address, bytes, launch.param_bytes, lane, "parameter", use.write);
  if (use.write) fault(kReadOnly, lane, "write to a kernel parameter");
  check_alignment(address, bytes, lane, "parameter");
  return const_cast<uint8_t*>(launch.params) + address;
}

uint8_t* global_at(Warp& w, int lane, uint64_t address, int bytes, const Use& use) {
  const Buffer& buffer = buffer_at(*w.block->machine, address, bytes, lane, use.write);
  check_alignment(address, bytes, lane, "global");
  if (use.write && buffer.read_only) {
    fault(kReadOnly, lane, "write at offset %llu of an input declared const",
          static_cast<unsigned long long>(address - buffer.base));
  }
  touch_global(w, lane, buffer, address, bytes, use);
  return reinterpret_cast<uint8_t*>(address);
}

// The space that an address is in; a generic one becomes an offset into its window.
Space resolve(Space space, uint64_t& address) {
  if (space == Space::shared || space == Space::cluster) address &= 0xffffffff;
  if (space != Space::generic) return space;
  if (address < kSharedWindow) return Space::global;
  for (const auto& [window, inside] : {std::pair(kSharedWindow, Space::cluster), std::pair(kLocalWindow, Space::local),
                                       std::pair(kParamWindow, Space::param)}) {
    if (address < window || address >= window + kWindowSize) continue;
    address -= window;
    return inside;
  }
  return Space::global;
}

int wavefronts(const uint64_t* addresses, uint32_t mask, int bytes) {
  const int at_once = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  int total = 0;
  uint64_t words[32][32 * 4];  // [bank]: those asked of it
  for (int first = 0; first < kLanes; first += at_once) {
    int load[32] = {}, most = 0;
    for (int lane = first; lane < first + at_once; ++lane) {
      if (!has(mask, lane)) continue;
      for (uint64_t word = addresses[lane] / 4; word <= (addresses[lane] + bytes - 1) / 4; ++word) {
        uint64_t* bank = words[word % 32];
        int& count = load[word % 32];
        if (std::find(bank, bank + count, word) != bank + count) continue;
        bank[count++] = word;
        most = std::max(most, count);
      }
    }
    total += most;
  }
  return total;
}

// Accesses are aligned and of 32 bytes at most, so that each is within one sector.
int sectors(const uint64_t* addresses, uint32_t mask) {
  uint64_t seen[kLanes];
  int count = 0;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const uint64_t sector = addresses[__builtin_ctz(rest)] / 32;
    if (count && seen[count - 1] == sector) continue;
    if (std::find(seen, seen + count, sector) == seen + count) seen[count++] = sector;
  }
  return count;
}

}  // namespace

void check_global(Warp& w, int lane, uint64_t address, uint64_t bytes, bool write, const Use* use) {
  if (bytes > INT32_MAX) fault(kOutOfBounds, lane, "a copy of more than 2 GiB");
  const Buffer& buffer = buffer_at(*w.block->machine, address, bytes, lane, write);
  if (write && buffer.read_only) {
    fault(kReadOnly, lane, "write at offset %llu of an input declared const",
          static_cast<unsigned long long>(address - buffer.base));
  }
  if (use) touch_global(w, lane, buffer, address, bytes, *use);
}

uint8_t* access(Warp& w, int lane, Space space, uint64_t address, int bytes, const Use& use) {
  switch (resolve(space, address)) {
    case Space::shared:
      return shared_at(w, lane, address, bytes, use);
    case Space::cluster:
      return cluster_at(w, lane, address, bytes, use);
    case Space::local:
      return local_at(w, lane, address, bytes, use);
    case Space::param:
      return param_at(w, lane, address, bytes, use);
    default:
      return global_at(w, lane, address, bytes, use);
  }
}

void count_access(Warp& w, Space space, const uint64_t* addresses, uint32_t mask, int bytes, bool write) {
  Counts& c = w.block->machine->counts;
  uint32_t shared = space == Space::shared ? mask : 0, global = space == Space::global ? mask : 0;
  for (int lane = 0; lane < kLanes && space == Space::generic; ++lane) {
    if (!has(mask, lane)) continue;
    uint64_t address = addresses[lane];
    const Space in = resolve(space, address);
    shared |= static_cast<uint32_t>(in == Space::shared || in == Space::cluster) << lane;
    global |= static_cast<uint32_t>(in == Space::global) << lane;
  }
  if (shared) {
    ++c.shared_requests;
    c.shared_wavefronts += wavefronts(addresses, shared, bytes);
  }
  if (!global) return;
  const uint64_t total = static_cast<uint64_t>(__builtin_popcount(global)) * bytes;
  if (write) {
    ++c.global_store_requests, c.global_store_sectors += sectors(addresses, global);
    c.global_store_bytes += total;
  } else {
    ++c.global_load_requests, c.global_load_sectors += sectors(addresses, global);
    c.global_load_bytes += total;
  }
}

void count_rows(Warp& w, const uint32_t* addresses, int rows) {
  Counts& c = w.block->machine->counts;
  ++c.shared_requests;
  for (int first = 0; first < rows; first += 8) {
    uint64_t wide[kLanes] = {};
    std::copy_n(addresses + first, 8, wide);
    c.shared_wavefronts += wavefronts(wide, 0xff, 16);
  }
}

}  // namespace emu
