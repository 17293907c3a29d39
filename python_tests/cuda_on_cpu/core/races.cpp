// Shared memory: races between threads, and reads of what nobody has written. Happened-before is followed by clocks of
// warps and epochs of lanes, which barriers, fences and atomics pass on.
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
  // Two atomics do not race, nor do two writes of one value, which compilers emit.
  const bool harmless = (use.strong && cell.write.strong) || (use.write && same);
  if ((cell.write.bytes & bytes) && !harmless && !ordered(w, lane, cell.write, cell.warp)) {
    race(lane, index * 4, use.write, cell.write, cell.warp, true);
  }
  const auto reads = [&](int warp) -> Touch& { return b.reads[warp * b.cells.size() + index]; };
  const uint32_t now = w.clock[w.index], me = 1u << w.index;
  if (!use.write) {
    if (!use.recorded) return;
    Touch& mine = reads(w.index);
    const bool again = (cell.readers & me) && mine.clock == now && mine.sync == w.sync_epoch;
    const uint32_t epoch = w.known[lane][lane];
    const uint32_t lanes = (again ? mine.lanes : 0) | 1u << lane;
    const uint8_t which = again ? mine.bytes | bytes : bytes;
    const bool strong = use.strong && (!again || mine.strong);
    mine = {now, w.sync_epoch, again ? std::min(mine.epoch, epoch) : epoch, lanes, which, strong};
    cell.readers |= me;
    return;
  }
  bool all = !use.strong;
  for (uint32_t rest = cell.readers; rest; rest &= rest - 1) {
    const int v = __builtin_ctz(rest);
    all &= (reads(v).bytes & ~bytes) == 0;
    if ((reads(v).bytes & bytes) && !(use.strong && reads(v).strong) && !ordered(w, lane, reads(v), v)) {
      race(lane, index * 4, true, reads(v), v, false);
    }
  }
  // Who is ordered after this write is ordered after those reads.
  if (all) cell.readers = 0;
  const bool mine = cell.warp == w.index && cell.write.lanes == 1u << lane && cell.write.clock == now;
  const uint8_t which = mine ? cell.write.bytes | bytes : bytes;
  cell.write = {now, w.sync_epoch, w.known[lane][lane], 1u << lane, which, use.strong};
  cell.warp = w.index;
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

namespace {

// Whether flags that are 0 or 1 all have the value.
template <uint8_t kValue>
bool all_equal(const uint8_t* flags, int bytes) {
  const auto chunk = [&]<class T>(T) {
    for (int at = 0; at < bytes; at += sizeof(T)) {
      T some;
      std::memcpy(&some, flags + at, sizeof(T));
      if (some != static_cast<T>(kValue * 0x0101010101010101ull)) return false;
    }
    return true;
  };
  return bytes % 8 == 0 ? chunk(uint64_t{}) : bytes == 4 ? chunk(uint32_t{}) : chunk(uint8_t{});
}

}  // namespace

void touch_shared(Warp& w, int lane, uint32_t address, int bytes, const Use& use) {
  Block& b = *w.block;
  if (!all_equal<0>(&b.pending[address], bytes)) {
    fault(kSharedRace, lane, "%s of shared memory at %u while a cp.async to it is under way", verb(use.write), address);
  }
  if (use.write) refuse_write(w, lane, address, bytes);
  if ((!use.write || use.atomic) && !all_equal<1>(&b.written[address], bytes)) {
    b.machine->warn(w, lane, "read of uninitialised shared memory at " + std::to_string(address), kUninitialisedShared);
  }
  if (use.write) std::memset(&b.written[address], 1, bytes);
  const bool same = use.data && std::memcmp(&b.shared[address], use.data, bytes) == 0;
  for (uint32_t at = address; at < address + bytes;) {
    const uint32_t end = std::min<uint32_t>(address + bytes, (at | 3) + 1);
    check_cell(w, lane, at / 4, ((1 << (end - at)) - 1) << (at & 3), use, same);
    at = end;
  }
  if (use.strong) synchronise(w, lane, b.releases, address, use);
}

}  // namespace emu
