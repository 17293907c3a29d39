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

[[noreturn]] void race(int lane, uint32_t address, bool write, const Touch& before, int warp, bool before_write) {
  const bool several = (before.lanes & (before.lanes - 1)) != 0;
  const int who = several ? warp : warp * kLanes + __builtin_ctz(before.lanes);
  fault(kSharedRace, lane, "%s of shared memory at %u after a %s by %s %d, with no synchronisation between",
        verb(write), address, verb(before_write), several ? "threads of warp" : "thread", who);
}

void check_cell(Warp& w, int lane, uint32_t index, uint8_t bytes, const Use& use, bool same) {
  Block& b = *w.block;
  Cell& cell = b.cells[index];
  const size_t warps = b.warps.size();
  // Two atomics do not race, nor do two writes of one value, which compilers emit.
  const bool harmless = (use.strong && cell.write.strong) || (use.write && same);
  if ((cell.write.bytes & bytes) && !harmless && !ordered(w, lane, cell.write, cell.warp)) {
    race(lane, index * 4, use.write, cell.write, cell.warp, true);
  }
  Touch* reads = &b.reads[index * warps];
  const uint32_t now = w.clock[w.index];
  if (!use.write) {
    if (!use.recorded) return;
    Touch& mine = reads[w.index];
    const bool again = mine.clock == now && mine.sync == w.sync_epoch;
    const uint32_t epoch = w.known[lane][lane];
    const uint32_t lanes = (again ? mine.lanes : 0) | 1u << lane;
    const uint8_t which = again ? mine.bytes | bytes : bytes;
    const bool strong = use.strong && (!again || mine.strong);
    mine = {now, w.sync_epoch, again ? std::min(mine.epoch, epoch) : epoch, lanes, which, strong};
    return;
  }
  for (size_t v = 0; v < warps; ++v) {
    if ((reads[v].bytes & bytes) && !(use.strong && reads[v].strong) && !ordered(w, lane, reads[v], v)) {
      race(lane, index * 4, true, reads[v], v, false);
    }
  }
  const bool mine = cell.warp == w.index && cell.write.lanes == 1u << lane && cell.write.clock == now;
  const uint8_t which = mine ? cell.write.bytes | bytes : bytes;
  cell.write = {now, w.sync_epoch, w.known[lane][lane], 1u << lane, which, use.strong};
  cell.warp = w.index;
}

// A strong access: what the warp did before is before what others of its block do after theirs to the same address,
void synchronise_warps(Warp& w, uint64_t address) {
  std::vector<uint32_t>& release = w.block->releases[address];
  release.resize(w.clock.size());
  for (size_t v = 0; v < release.size(); ++v) w.clock[v] = release[v] = std::max(w.clock[v], release[v]);
  ++w.clock[w.index];
}

// and the same for blocks.
void synchronise_blocks(Machine& m, Block& b, uint64_t address) {
  History& release = m.releases[address];
  b.history.join(release);
  b.history.blocks[b.number] = b.clock++;
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

void touch_global(Warp& w, int lane, const Buffer& buffer, uint64_t address, int bytes, const Use& use) {
  Machine& m = *w.block->machine;
  Block& b = *w.block;
  if (use.strong) {
    synchronise_warps(w, address);
    return synchronise_blocks(m, b, address);
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
    const bool after_read = use.write && (cell.read & which) && !happened(b, cell.reader, cell.read_clock);
    const auto* there = reinterpret_cast<const uint8_t*>(at);
    const bool same = use.data && std::memcmp(there, use.data + (at - address), end - at) == 0;
    if ((after_write && !same) || after_read) {
      fault(kGlobalRace, lane, "%s of global memory at offset %llu after a %s by block %u, with no atomic between",
            verb(use.write), static_cast<unsigned long long>(at - buffer.base), verb(after_write),
            (after_write ? cell.writer : cell.reader) - 1);
    }
    const auto note = [&](uint32_t& number, uint32_t& clock, uint8_t& touched) {
      touched = number == b.number && clock == b.clock ? touched | which : which;
      number = b.number, clock = b.clock;
    };
    use.write ? note(cell.writer, cell.write_clock, cell.written) : note(cell.reader, cell.read_clock, cell.read);
    at = end;
  }
}

void touch_shared(Warp& w, int lane, uint32_t address, int bytes, const Use& use) {
  Block& b = *w.block;
  const auto any = [&](const std::vector<uint8_t>& flags, bool set) {
    const auto first = flags.begin() + address, last = first + bytes;
    return std::find_if(first, last, [&](uint8_t n) { return (n != 0) == set; }) != last;
  };
  if (any(b.pending, true)) {
    fault(kSharedRace, lane, "%s of shared memory at %u while a cp.async to it is under way", verb(use.write), address);
  }
  if (use.write) {
    refuse_write(w, lane, address, bytes);
    std::fill_n(b.written.begin() + address, bytes, 1);
  } else if (any(b.written, false)) {
    b.machine->warn(w, lane, "read of uninitialised shared memory at " + std::to_string(address));
  }
  const bool same = use.data && std::memcmp(&b.shared[address], use.data, bytes) == 0;
  for (uint32_t at = address; at < address + bytes;) {
    const uint32_t end = std::min<uint32_t>(address + bytes, (at | 3) + 1);
    check_cell(w, lane, at / 4, ((1 << (end - at)) - 1) << (at & 3), use, same);
    at = end;
  }
  if (use.strong) synchronise_warps(w, address);
}

}  // namespace emu
