// Shared memory as the async proxy sees it: who may touch what a copy has, and what needs a fence.
#include "async_proxy.h"

#include <algorithm>

namespace emu {
namespace {

void check_range(const Block& b, int lane, uint64_t address, uint64_t bytes, bool write) {
  if (address + bytes <= b.shared.size()) return;
  fault(kOutOfBounds, lane, "shared %s of %llu bytes at %llu of %zu", verb(write),
        static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(address), b.shared.size());
}

uint8_t bytes_of(uint32_t cell, uint32_t address, uint32_t bytes) {
  uint8_t out = 0;
  for (uint32_t k = 0; k < 4; ++k) out |= (cell * 4 + k >= address && cell * 4 + k < address + bytes) << k;
  return out;
}

// Whether the async proxy sees what a generic store left in a cell.
bool fenced(const Block& b, const Warp& w, const Cell& cell) {
  const int own = b.warps.size(), all = b.cluster->warps();
  if (cell.write.clock == 0 || cell.warp >= all) return true;
  if (static_cast<size_t>(cell.warp) < w.fenced.size() && w.fenced[cell.warp] >= cell.write.clock) return true;
  const Warp& writer = b.cluster->blocks[cell.warp / own]->warps[cell.warp % own];
  return writer.proxy_fences[__builtin_ctz(cell.write.lanes)] > cell.fences;
}

// Reads before a copy's write are known to be before it: whoever comes after the write comes after them.
void forget_reads(Block& b, uint32_t cell, uint8_t bytes) {
  for (uint32_t rest = b.cells[cell].readers; rest; rest &= rest - 1) {
    b.reads[__builtin_ctz(rest) * b.cells.size() + cell].bytes &= ~bytes;
  }
  if (b.far_reads.empty()) return;
  const int number = cell;
  for (auto at = b.far_reads.lower_bound({number, 0}); at != b.far_reads.end() && at->first.first == number; ++at) {
    at->second.bytes &= ~bytes;
  }
}

}  // namespace

void check_fenced(const Block& b, const Warp& w, int lane, uint32_t address, uint32_t bytes, const char* what) {
  for (uint32_t index = address / 4; index <= (address + bytes - 1) / 4; ++index) {
    const Cell& cell = b.cells[index];
    if (!(cell.write.bytes & bytes_of(index, address, bytes)) || fenced(b, w, cell)) continue;
    const int who = cell.warp % b.warps.size() * kLanes + __builtin_ctz(cell.write.lanes);
    fault(kSharedRace, lane,
          "%s reads shared memory at %u, which thread %d has written with no fence.proxy.async after", what, index * 4,
          who);
  }
}

void async_read(Block& b, Warp& w, int lane, uint32_t address, uint32_t bytes, const char* what) {
  check_range(b, lane, address, bytes, false);
  if (bytes == 0) return;
  touch_shared(b, w, lane, address, bytes, {.write = false});
  check_fenced(b, w, lane, address, bytes, what);
}

void async_write(Block& b, Warp& w, int lane, uint32_t address, uint32_t bytes) {
  check_range(b, lane, address, bytes, true);
  if (bytes == 0) return;
  check_write(b, w, lane, address, bytes);
  guard(b, address, bytes, kTarget);
}

void async_wrote(Block& b, uint32_t address, uint32_t bytes, int place, uint32_t clock) {
  if (bytes == 0) return;
  guard(b, address, bytes, -kTarget);
  std::fill_n(b.written.begin() + address, bytes, 1);
  for (uint32_t index = address / 4; index <= (address + bytes - 1) / 4; ++index) {
    Cell& cell = b.cells[index];
    const bool again = cell.warp == place && cell.write.clock == clock;
    const uint8_t which = bytes_of(index, address, bytes) | (again ? cell.write.bytes : 0);
    cell.write = {clock, 0, 0, 1, which, false};
    cell.warp = place;
    forget_reads(b, index, which);
  }
}

void refuse_guarded(const Block& b, int lane, uint32_t address, int bytes, bool write) {
  uint32_t all = 0;
  for (int k = 0; k < bytes; ++k) all |= b.pending[address + k];
  if (!all) return;
  if (all & kMbarrier) fault(kInvalid, lane, "%s of shared memory at %u, where an mbarrier is", verb(write), address);
  if (all & kTarget) {
    fault(kSharedRace, lane, "%s of shared memory at %u, the target of a bulk copy that has not been waited for",
          verb(write), address);
  }
  if (all & kCopies) {
    fault(kSharedRace, lane, "%s of shared memory at %u while a cp.async to it is under way", verb(write), address);
  }
  if (write) {
    fault(kSharedRace, lane, "write of shared memory at %u, which a bulk copy may still read: no wait_group.read",
          address);
  }
}

void guard(Block& b, uint32_t address, uint32_t bytes, uint32_t change) {
  for (uint32_t k = 0; k < bytes; ++k) {
    uint32_t& flags = b.pending[address + k];
    b.busy -= flags != 0;
    flags += change;
    b.busy += flags != 0;
  }
}

// Covers what is known to have happened; of its own warp, when other lanes do not fence, only what came before the
// latest synchronisation of all of them, and each fencing lane's own stores.
void proxy_fence(Warp& w, uint32_t lanes) {
  std::vector<uint32_t> covered = w.clock;
  if ((lanes & w.live) != w.live) covered[w.number] = w.synced;
  join(w.fenced, covered);
  for (int lane = 0; lane < kLanes; ++lane) w.proxy_fences[lane] += has(lanes, lane);
  ++w.clock[w.number];
}

}  // namespace emu
