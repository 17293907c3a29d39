// What a wgmma reads of shared memory: from its issue until it lands, and who may write there afterwards.
#include "async_proxy.h"

namespace emu {
namespace {

template <class Function>
void for_granules(uint32_t address, int bytes, Function function) {
  for (uint32_t g = address / kGranule; g <= (address + bytes - 1) / kGranule; ++g) function(g);
}

// One of the four warps has seen it land, and what that warp knew then is known here.
bool seen(const Block& b, const Warp& w, const uint32_t* landed, size_t group) {
  if (w.block == &b && w.index / kGroupWarps == static_cast<int>(group)) return true;
  const size_t first = b.rank * b.warps.size();
  for (size_t v = group * kGroupWarps; v < (group + 1) * kGroupWarps; ++v) {
    if (w.clock[first + v] >= landed[v]) return true;
  }
  return false;
}

}  // namespace

// Every granule of shared memory that a wgmma multiplies passes here, once for each warp that it is read for.
const uint8_t* read_granule(Warp& w, uint32_t address) {
  const uint8_t* granule = access(w, 0, Space::shared, address, kGranule, {.recorded = false});
  check_fenced(*w.block, w, 0, address, kGranule, "wgmma");
  return granule;
}

void begin_read(Warp& first, Wgmma& op, uint32_t address, uint32_t warps) {
  Block& b = *first.block;
  for (int v = 0; v < kGroupWarps; ++v) {
    if (!has(warps, v)) continue;
    Warp& w = b.warps[first.index + v];
    b.machine->running = &w;
    read_granule(w, address);
  }
  ++b.warpgroups.reading[address / kGranule];
  op.reads.push_back(address / kGranule);
}

void end_reads(Warp& first, const Wgmma& op) {
  Block& b = *first.block;
  for (const uint32_t granule : op.reads) {
    --b.warpgroups.reading[granule];
    uint32_t* landed = &b.warpgroups.landed[granule * b.warps.size()];
    for (int v = first.index; v < first.index + kGroupWarps; ++v) landed[v] = b.warps[v].clock[b.warps[v].number];
  }
}

void refuse_write(const Block& b, const Warp& w, int lane, uint32_t address, int bytes) {
  const Warpgroups& all = b.warpgroups;
  if (all.reading.empty()) return;
  for_granules(address, bytes, [&](uint32_t granule) {
    if (all.reading[granule]) {
      fault(kSharedRace, lane,
            "write of shared memory at %u, which a wgmma under way reads: no wgmma.wait_group covers it", address);
    }
    const uint32_t* landed = &all.landed[granule * b.warps.size()];
    for (size_t g = 0; g < all.groups.size(); ++g) {
      if (landed[g * kGroupWarps] == 0 || seen(b, w, landed, g)) continue;
      fault(kSharedRace, lane,
            "write of shared memory at %u after a wgmma of warpgroup %zu read it, with no "
            "synchronisation between",
            address, g);
    }
  });
}

}  // namespace emu
