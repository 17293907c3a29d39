// Shared memory: races between threads, and reads of what nobody has written. Happened-before is followed by clocks of
// warps and epochs of lanes, which barriers, fences and atomics pass on.
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

// Up to now nobody writes these bytes, and for a write nobody reads them, without an order. Whether a write comes
// after all that its block's warps have read of the cell.
bool check_order(Block& b, Warp& w, int lane, uint32_t index, uint8_t bytes, const Use& use, bool same) {
  const Cell& cell = b.cells[index];
  // Two atomics do not race, nor do two writes of one value, which compilers emit.
  const bool harmless = (use.strong && cell.write.strong) || (use.write && same);
  if ((cell.write.bytes & bytes) && !harmless && !ordered(w, lane, cell.write, cell.warp)) {
    race(w, lane, index * 4, use.write, cell.write, cell.warp, true);
  }
  if (!use.write) return false;
  bool all = !use.strong;
  const auto check_read = [&](const Touch& read, int warp) {
    all &= (read.bytes & ~bytes) == 0;
    if ((read.bytes & bytes) && !(use.strong && read.strong) && !ordered(w, lane, read, warp)) {
      race(w, lane, index * 4, true, read, warp, false);
    }
  };
  const int first = b.rank * b.warps.size();
  for (uint32_t rest = cell.readers; rest; rest &= rest - 1) {
    const int v = __builtin_ctz(rest);
    check_read(b.reads[v * b.cells.size() + index], first + v);
  }
  if (b.far_reads.empty()) return all;
  const int cell_number = index;
  for (auto at = b.far_reads.lower_bound({cell_number, 0}); at != b.far_reads.end(); ++at) {
    if (at->first.first != cell_number) break;
    check_read(at->second, at->first.second);
  }
  return all;
}

void note_read(Block& b, Warp& w, int lane, uint32_t index, uint8_t bytes, const Use& use) {
  Cell& cell = b.cells[index];
  const bool own = w.block == &b;
  const uint32_t now = w.clock[w.number], me = own ? 1u << w.index : 0;
  Touch& mine = own ? b.reads[w.index * b.cells.size() + index] : b.far_reads[{static_cast<int>(index), w.number}];
  const bool valid = !own || (cell.readers & me);
  const bool again = valid && mine.clock == now && mine.sync == w.sync_epoch;
  const uint32_t epoch = w.known[lane][lane];
  const uint32_t lanes = (again ? mine.lanes : 0) | 1u << lane;
  const uint8_t which = again ? mine.bytes | bytes : bytes;
  const bool strong = use.strong && (!again || mine.strong);
  mine = {now, w.sync_epoch, again ? std::min(mine.epoch, epoch) : epoch, lanes, which, strong};
  cell.readers |= me;
}

void check_cell(Block& b, Warp& w, int lane, uint32_t index, uint8_t bytes, const Use& use, bool same) {
  const bool after_reads = check_order(b, w, lane, index, bytes, use, same);
  if (!use.write) {
    if (use.recorded) note_read(b, w, lane, index, bytes, use);
    return;
  }
  Cell& cell = b.cells[index];
  const uint32_t now = w.clock[w.number];
  // Who is ordered after this write is ordered after those reads.
  if (after_reads) cell.readers = 0;
  const bool mine = cell.warp == w.number && cell.write.lanes == 1u << lane && cell.write.clock == now;
  const uint8_t which = mine ? cell.write.bytes | bytes : bytes;
  cell.write = {now, w.sync_epoch, w.known[lane][lane], 1u << lane, which, use.strong};
  cell.warp = w.number, cell.fences = w.proxy_fences[lane];
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

namespace {

// Whether bytes have all been written.
bool all_written(const uint8_t* flags, int bytes) {
  const auto chunk = [&]<class T>(T) {
    for (int at = 0; at < bytes; at += sizeof(T)) {
      T some;
      std::memcpy(&some, flags + at, sizeof(T));
      if (some != static_cast<T>(0x0101010101010101ull)) return false;
    }
    return true;
  };
  return bytes % 8 == 0 ? chunk(uint64_t{}) : bytes == 4 ? chunk(uint32_t{}) : chunk(uint8_t{});
}

}  // namespace

void check_write(Block& b, Warp& w, int lane, uint32_t address, uint32_t bytes) {
  refuse_guarded(b, lane, address, bytes, true);
  refuse_write(b, w, lane, address, bytes);
  const Use use{.write = true};
  for (uint32_t at = address; at < address + bytes; at = (at | 3) + 1) {
    const uint32_t end = std::min<uint32_t>(address + bytes, (at | 3) + 1);
    check_order(b, w, lane, at / 4, ((1 << (end - at)) - 1) << (at & 3), use, false);
  }
}

void touch_shared(Block& b, Warp& w, int lane, uint32_t address, int bytes, const Use& use) {
  if (b.busy) refuse_guarded(b, lane, address, bytes, use.write);
  if (use.write) refuse_write(b, w, lane, address, bytes);
  if ((!use.write || use.atomic) && !all_written(&b.written[address], bytes)) {
    b.machine->warn(w, lane, "read of uninitialised shared memory at " + std::to_string(address), kUninitialisedShared);
  }
  if (use.write) std::memset(&b.written[address], 1, bytes);
  const bool same = use.data && std::memcmp(&b.shared[address], use.data, bytes) == 0;
  for (uint32_t at = address; at < address + bytes;) {
    const uint32_t end = std::min<uint32_t>(address + bytes, (at | 3) + 1);
    check_cell(b, w, lane, at / 4, ((1 << (end - at)) - 1) << (at & 3), use, same);
    at = end;
  }
  if (&b != w.block) note_far(b, w.number, w.clock[w.number]);
  if (use.strong) synchronise(w, lane, b.cluster->releases, shared_key(b, address), use);
}

}  // namespace emu
