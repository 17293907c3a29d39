// Global memory: races between warps, of one block and of several, and reads of what nobody has written.
#include <algorithm>
#include <cstdlib>

#include "cluster.h"

namespace emu {
namespace {

bool happened(const Warp& w, uint32_t other, uint32_t clock) {
  const uint32_t mine = warp_number(w), first = mine - w.number, warps = w.block->cluster->warps();
  if (other == mine) return true;
  if (other >= first && other < first + warps) return w.clock[other - first] >= clock;
  return w.order.others.of(other) >= clock;
}

[[noreturn]] void race(const Warp& w, int lane, uint64_t offset, bool write, uint32_t other, bool before_write) {
  const uint32_t warps = w.block->warps.size(), block = (other - 1) / warps;
  fault(kGlobalRace, lane, "%s of global memory at offset %llu after a %s by %s %u, with no %s between", verb(write),
        static_cast<unsigned long long>(offset), verb(before_write), block + 1 == w.block->number ? "warp" : "block",
        block + 1 == w.block->number ? (other - 1) % warps : block,
        block + 1 == w.block->number ? "barrier" : "release and acquire");
}

void check_cell(const Warp& w, int lane, GlobalCell& cell, uint64_t offset, uint8_t which, const Use& use, bool same) {
  // Two strong accesses do not race, nor do two writes of one value.
  const bool write_harmless = (use.strong && cell.strong_write) || same;
  if ((cell.written & which) && !write_harmless && !happened(w, cell.writer, cell.write_clock)) {
    race(w, lane, offset, use.write, cell.writer, true);
  }
  const uint32_t me = warp_number(w), now = w.clock[w.number];
  const auto note = [&](uint32_t& number, uint32_t& clock, uint8_t& touched, bool& strong) {
    const bool again = number == me && clock == now;
    touched = again ? touched | which : which;
    strong = use.strong && (!again || strong);
    number = me, clock = now;
  };
  if (!use.write) return note(cell.reader, cell.read_clock, cell.read, cell.strong_read);
  if ((cell.read & which) && !(use.strong && cell.strong_read) && !happened(w, cell.reader, cell.read_clock)) {
    race(w, lane, offset, true, cell.reader, false);
  }
  note(cell.writer, cell.write_clock, cell.written, cell.strong_write);
}

void touch_written(Warp& w, int lane, uint8_t* written, uint64_t offset, int bytes, bool write) {
  written += offset;
  if (write) {
    std::memset(written, 1, bytes);
  } else if (std::memchr(written, 0, bytes)) {
    w.block->machine->warn(w, lane, "uninitialised global read at offset " + std::to_string(offset),
                           kUninitialisedGlobal);
  }
}

}  // namespace

void touch_global(Warp& w, int lane, const Buffer& buffer, uint64_t address, int bytes, const Use& use) {
  Machine& m = *w.block->machine;
  const uint64_t offset = address - buffer.base;
  if (uint8_t* written = m.launch.written ? m.launch.written[&buffer - m.launch.buffers] : nullptr) {
    if (!use.write || use.atomic) touch_written(w, lane, written, offset, bytes, false);
    if (use.write) touch_written(w, lane, written, offset, bytes, true);
  }
  if (buffer.read_only) return;
  auto& cells = m.global[&buffer - m.launch.buffers];
  // Zeros that take no memory until they are touched.
  if (!cells) cells.reset(static_cast<GlobalCell*>(std::calloc(buffer.size / 4 + 2, sizeof(GlobalCell))));
  const uint64_t base = buffer.base & ~3ull;
  for (uint64_t at = address; at < address + bytes;) {
    const uint64_t end = std::min<uint64_t>(address + bytes, (at | 3) + 1);
    const uint8_t which = ((1 << (end - at)) - 1) << (at & 3);
    const auto* there = reinterpret_cast<const uint8_t*>(at);
    const bool same = use.data && std::memcmp(there, use.data + (at - address), end - at) == 0;
    check_cell(w, lane, cells[(at - base) / 4], at - buffer.base, which, use, same);
    at = end;
  }
  if (use.strong) synchronise(w, lane, m.releases, address, use);
}

}  // namespace emu
