// Races and uninitialised reads: between threads on shared memory, between blocks on global memory. Happened-before is
// followed by clocks of warps and of blocks, which barriers and atomics pass on.
#include <algorithm>

#include "machine.h"

namespace emu {
namespace {

bool ordered(const Warp& w, int lane, const Touch& before, int warp) {
  if (before.clock == 0) return true;
  if (warp == w.index) {
    if (before.sync != w.sync_epoch) return true;
    for (uint32_t others = before.lanes & ~(1u << lane); others; others &= others - 1) {
      if (w.known[lane][__builtin_ctz(others)] < before.epoch) return false;
    }
    return true;
  }
  return w.clock[warp] >= before.clock;
}

[[noreturn]] void race(const Warp& w, int lane, uint32_t address, bool write, const Touch& before, int warp,
                       bool before_write) {
  const std::string other = (before.lanes & (before.lanes - 1)) != 0
                                ? "threads of warp " + std::to_string(warp)
                                : "thread " + std::to_string(warp * kLanes + __builtin_ctz(before.lanes));
  (void)w;
  fault(kSharedRace, lane, "%s of shared memory at %u after a %s by %s, with no synchronisation between", verb(write),
        address, verb(before_write), other.c_str());
}

void check_cell(Warp& w, int lane, uint32_t index, uint8_t bytes, bool write, bool atomic, bool same) {
  Block& b = *w.block;
  Cell& cell = b.cells[index];
  const size_t warps = b.warps.size();
  // Two atomics do not race, nor do two writes of one value, which compilers emit.
  const bool harmless = (atomic && cell.write.atomic) || (write && same);
  if ((cell.write.bytes & bytes) && !harmless && !ordered(w, lane, cell.write, cell.warp)) {
    race(w, lane, index * 4, write, cell.write, cell.warp, true);
  }
  Touch* reads = &b.reads[index * warps];
  const uint32_t now = w.clock[w.index];
  if (!write) {
    Touch& mine = reads[w.index];
    const bool again = mine.clock == now && mine.sync == w.sync_epoch;
    const uint32_t epoch = w.known[lane][lane];
    const uint32_t lanes = (again ? mine.lanes : 0) | 1u << lane;
    const uint8_t which = again ? mine.bytes | bytes : bytes;
    mine = {now,   w.sync_epoch, again ? std::min(mine.epoch, epoch) : epoch,
            lanes, which,        atomic && (!again || mine.atomic)};
    return;
  }
  for (size_t v = 0; v < warps; ++v) {
    if ((reads[v].bytes & bytes) && !(atomic && reads[v].atomic) && !ordered(w, lane, reads[v], v)) {
      race(w, lane, index * 4, true, reads[v], v, false);
    }
  }
  const bool mine = cell.warp == w.index && cell.write.lanes == 1u << lane && cell.write.clock == now;
  const uint8_t which = mine ? cell.write.bytes | bytes : bytes;
  cell.write = {now, w.sync_epoch, w.known[lane][lane], 1u << lane, which, atomic};
  cell.warp = w.index;
}

// An atomic, or a volatile or stronger access: what the block did before is before what others do after theirs.
void synchronise(Machine& m, Block& b, uint64_t address) {
  History& release = m.releases[address];
  b.history.join(release);
  uint32_t& mine = b.history.blocks[b.number];
  mine = b.clock++;
  release.join(b.history);
}

bool happened(const Block& b, uint32_t other, uint32_t clock) {
  if (other == 0 || other == b.number) return true;
  const auto known = b.history.blocks.find(other);
  return known != b.history.blocks.end() && known->second >= clock;
}

}  // namespace

// What any of these lanes did before is before what each of them does next.
void synchronise_lanes(Warp& w, uint32_t lanes) {
  if ((lanes & w.live) == w.live) ++w.sync_epoch;
  ++w.lane_epoch;
  uint32_t joined[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int other = 0; has(lanes, lane) && other < kLanes; ++other) {
      joined[other] = std::max(joined[other], w.known[lane][other]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(lanes, lane)) continue;
    std::copy_n(joined, kLanes, w.known[lane]);
    w.known[lane][lane] = w.lane_epoch;
  }
}

// An atomic, volatile or stronger access orders what the block's warps do around it.
void synchronise_warps(Warp& w, uint64_t address) {
  std::vector<uint32_t>& release = w.block->releases[address];
  release.resize(w.clock.size());
  for (size_t v = 0; v < release.size(); ++v) w.clock[v] = release[v] = std::max(w.clock[v], release[v]);
  ++w.clock[w.index];
}

void touch_global(Warp& w, int lane, const Buffer& buffer, uint64_t address, int bytes, bool write, bool atomic) {
  Machine& m = *w.block->machine;
  Block& b = *w.block;
  if (atomic) {
    synchronise_warps(w, address);
    return synchronise(m, b, address);
  }
  if (buffer.read_only) return;
  auto& cells = m.global[&buffer - m.launch.buffers];
  if (cells.empty()) cells.resize(buffer.size / 4 + 2);
  const uint64_t base = buffer.base & ~3ull;
  for (uint64_t at = address; at < address + bytes;) {
    const uint64_t end = std::min<uint64_t>(address + bytes, (at | 3) + 1);
    const uint8_t which = ((1 << (end - at)) - 1) << (at & 3);
    GlobalCell& cell = cells[(at - base) / 4];
    const bool after_write = (cell.written & which) && !happened(b, cell.writer, cell.write_clock);
    const bool after_read = write && (cell.read & which) && !happened(b, cell.reader, cell.read_clock);
    const uint8_t* storing = m.storing;
    const bool same =
        write && storing && std::memcmp(reinterpret_cast<const uint8_t*>(at), storing + (at - address), end - at) == 0;
    if ((after_write && !same) || after_read) {
      fault(kGlobalRace, lane, "%s of global memory at offset %llu after a %s by block %u, with no atomic between",
            verb(write), static_cast<unsigned long long>(at - buffer.base), verb(after_write),
            (after_write ? cell.writer : cell.reader) - 1);
    }
    if (write) {
      const bool mine = cell.writer == b.number && cell.write_clock == b.clock;
      cell.written = mine ? cell.written | which : which;
      cell.writer = b.number, cell.write_clock = b.clock;
    } else {
      const bool mine = cell.reader == b.number && cell.read_clock == b.clock;
      cell.read = mine ? cell.read | which : which;
      cell.reader = b.number, cell.read_clock = b.clock;
    }
    at = end;
  }
}

void touch_shared(Warp& w, int lane, uint32_t address, int bytes, bool write, bool atomic) {
  Block& b = *w.block;
  const auto pending = b.pending.begin() + address;
  if (std::find_if(pending, pending + bytes, [](uint8_t n) { return n != 0; }) != pending + bytes) {
    fault(kSharedRace, lane, "%s of shared memory at %u while a cp.async to it is under way", verb(write), address);
  }
  const uint8_t* storing = b.machine->storing;
  const bool same = write && storing && std::memcmp(&b.shared[address], storing, bytes) == 0;
  if (write) {
    std::fill_n(b.written.begin() + address, bytes, 1);
  } else if (std::find(b.written.begin() + address, b.written.begin() + address + bytes, 0) !=
             b.written.begin() + address + bytes) {
    w.block->machine->warn(w, lane, "read of uninitialised shared memory at " + std::to_string(address));
  }
  for (uint32_t at = address; at < address + bytes;) {
    const uint32_t end = std::min<uint32_t>(address + bytes, (at | 3) + 1);
    check_cell(w, lane, at / 4, ((1 << (end - at)) - 1) << (at & 3), write, atomic, same);
    at = end;
  }
}

}  // namespace emu
