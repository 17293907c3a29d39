// Races and uninitialised reads: between threads on shared memory, between blocks on global memory. Happened-before is
// followed by clocks of warps and of blocks, which barriers and atomics pass on.
#include <algorithm>

#include "async_proxy.h"
#include "cluster.h"

namespace emu {
bool ordered(const Warp& w, int lane, const Touch& before, int warp) {
  if (before.clock == 0) return true;
  if (warp == w.number) {
    if (before.sync != w.sync_epoch) return true;
    for (uint32_t others = before.lanes & ~(1u << lane); others; others &= others - 1) {
      if (w.known[lane][__builtin_ctz(others)] < before.epoch) return false;
    }
    return true;
  }
  const int warps = w.block->cluster->warps();
  if (warp < warps) return w.clock[warp] >= before.clock;
  return static_cast<size_t>(warp - warps) < w.seen.size() && w.seen[warp - warps][lane] >= before.clock;
}

namespace {

[[noreturn]] void race(Warp& w, int lane, uint32_t address, bool write, const Touch& before, int warp,
                       bool before_write) {
  const int own = w.block->warps.size(), all = own * w.block->cluster->blocks.size();
  if (warp >= all) {
    fault(kSharedRace, lane, "%s of shared memory at %u, the target of a bulk copy that has not been waited for",
          verb(write), address);
  }
  const bool several = (before.lanes & (before.lanes - 1)) != 0;
  const int who = several ? warp % own : warp % own * kLanes + __builtin_ctz(before.lanes);
  const std::string of = all > own ? " of rank " + std::to_string(warp / own) : "";
  fault(kSharedRace, lane, "%s of shared memory at %u after a %s by %s %d%s, with no synchronisation between",
        verb(write), address, verb(before_write), several ? "threads of warp" : "thread", who, of.c_str());
}

// Up to now nobody writes these bytes, and for a write nobody reads them, without an order.
void check_order(Block& b, Warp& w, int lane, uint32_t index, uint8_t bytes, const Use& use, bool same) {
  const Cell& cell = b.cells[index];
  // Two atomics do not race, nor do two writes of one value, which compilers emit.
  const bool harmless = (use.strong && cell.write.strong) || (use.write && same);
  if ((cell.write.bytes & bytes) && !harmless && !ordered(w, lane, cell.write, cell.warp)) {
    race(w, lane, index * 4, use.write, cell.write, cell.warp, true);
  }
  if (!use.write) return;
  const auto check_read = [&](const Touch& read, int warp) {
    if ((read.bytes & bytes) && !(use.strong && read.strong) && !ordered(w, lane, read, warp)) {
      race(w, lane, index * 4, true, read, warp, false);
    }
  };
  const size_t warps = b.warps.size();
  const int first = b.rank * warps;
  for (size_t v = 0; v < warps; ++v) check_read(b.reads[index * warps + v], first + v);
  if (b.far_reads.empty()) return;
  const int cell_number = index;
  for (auto at = b.far_reads.lower_bound({cell_number, 0}); at != b.far_reads.end(); ++at) {
    if (at->first.first != cell_number) break;
    check_read(at->second, at->first.second);
  }
}

void check_cell(Block& b, Warp& w, int lane, uint32_t index, uint8_t bytes, const Use& use, bool same) {
  check_order(b, w, lane, index, bytes, use, same);
  Cell& cell = b.cells[index];
  const uint32_t now = w.clock[w.number];
  if (!use.write) {
    const bool own = w.block == &b;
    Touch& mine = own ? b.reads[index * b.warps.size() + w.index] : b.far_reads[{static_cast<int>(index), w.number}];
    const bool again = mine.clock == now && mine.sync == w.sync_epoch;
    const uint32_t epoch = w.known[lane][lane];
    const uint32_t lanes = (again ? mine.lanes : 0) | 1u << lane;
    const uint8_t which = again ? mine.bytes | bytes : bytes;
    const bool strong = use.strong && (!again || mine.strong);
    mine = {now, w.sync_epoch, again ? std::min(mine.epoch, epoch) : epoch, lanes, which, strong};
    return;
  }
  const bool mine = cell.warp == w.number && cell.write.lanes == 1u << lane && cell.write.clock == now;
  const uint8_t which = mine ? cell.write.bytes | bytes : bytes;
  cell.write = {now, w.sync_epoch, w.known[lane][lane], 1u << lane, which, use.strong};
  cell.warp = w.number, cell.fences = w.proxy_fences[lane];
}

// A strong access: what the warp did before is before what others of its block do after theirs to the same address,
void synchronise_warps(Warp& w, int lane, uint64_t address) {
  Known& release = w.block->cluster->releases[address];
  join(release.clock, w.clock), join(release.fenced, w.fenced);
  w.clock = release.clock, w.fenced = release.fenced;
  see(w, 1u << lane, w.clock);
  ++w.clock[w.number];
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
  if ((lanes & w.live) == w.live) ++w.sync_epoch, w.synced = w.clock[w.number]++;
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
  for (auto& landings : w.seen) {
    uint32_t latest = 0;
    for (uint32_t rest = lanes; rest; rest &= rest - 1) latest = std::max(latest, landings[__builtin_ctz(rest)]);
    for (uint32_t rest = lanes; rest; rest &= rest - 1) landings[__builtin_ctz(rest)] = latest;
  }
}

void touch_global(Warp& w, int lane, const Buffer& buffer, uint64_t address, int bytes, const Use& use) {
  Machine& m = *w.block->machine;
  Block& b = *w.block;
  if (use.strong) {
    synchronise_warps(w, lane, address);
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

void check_write(Block& b, Warp& w, int lane, uint32_t address, uint32_t bytes) {
  refuse_guarded(b, lane, address, bytes, true);
  const Use use{.write = true};
  for (uint32_t at = address; at < address + bytes; at = (at | 3) + 1) {
    const uint32_t end = std::min<uint32_t>(address + bytes, (at | 3) + 1);
    check_order(b, w, lane, at / 4, ((1 << (end - at)) - 1) << (at & 3), use, false);
  }
}

void touch_shared(Block& b, Warp& w, int lane, uint32_t address, int bytes, const Use& use) {
  const auto any = [&](const auto& flags, bool set) {
    const auto first = flags.begin() + address, last = first + bytes;
    return std::find_if(first, last, [&](uint32_t n) { return (n != 0) == set; }) != last;
  };
  if (any(b.pending, true)) {
    refuse_guarded(b, lane, address, bytes, use.write);
  }
  if (use.write) {
    std::fill_n(b.written.begin() + address, bytes, 1);
  } else if (any(b.written, false)) {
    b.machine->warn(w, lane, "read of uninitialised shared memory at " + std::to_string(address));
  }
  const bool same = use.data && std::memcmp(&b.shared[address], use.data, bytes) == 0;
  for (uint32_t at = address; at < address + bytes;) {
    const uint32_t end = std::min<uint32_t>(address + bytes, (at | 3) + 1);
    check_cell(b, w, lane, at / 4, ((1 << (end - at)) - 1) << (at & 3), use, same);
    at = end;
  }
  if (&b != w.block) note_far(b, w.number, w.clock[w.number]);
  if (use.strong) synchronise_warps(w, lane, shared_key(b, address));
}

}  // namespace emu
