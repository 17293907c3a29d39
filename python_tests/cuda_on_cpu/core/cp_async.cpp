// cp.async: a copy lands when its thread waits for it, and until then nobody may touch where it goes.
#include "async_proxy.h"
#include "lanes.h"

namespace emu {
namespace {

void mark_pending(Warp& w, const PendingCopy& copy, int change) { guard(*w.block, copy.shared, copy.bytes, change); }

// Operands: shared address, global address, size of the source or -1. imm: [0] bytes, [1] and [2] offsets, [3] the
// shared address has 64 bits.
void cp_async(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  uint64_t from[kLanes] = {}, to[kLanes] = {};
  uint32_t reading = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    PendingCopy copy{lane, w.copy_group[lane], 0, 0, static_cast<uint32_t>(i.imm[0]), 0};
    const uint64_t shared = i.imm[3] ? get<uint64_t>(w, o[0], lane) : get<uint32_t>(w, o[0], lane);
    copy.shared = static_cast<uint32_t>(shared + i.imm[1]);
    copy.global = get<uint64_t>(w, o[1], lane) + i.imm[2];
    copy.source_bytes = o[2] >= 0 ? get<uint32_t>(w, o[2], lane) : copy.bytes;
    if (copy.source_bytes > copy.bytes) fault(kInvalid, lane, "cp.async of more source bytes than bytes");
    if (copy.global % copy.bytes) fault(kMisaligned, lane, "cp.async from a misaligned global address");
    const uint32_t step = copy.source_bytes == copy.bytes ? copy.bytes : 1;
    for (uint32_t at = 0; at < copy.source_bytes; at += step) {
      access(w, lane, Space::global, copy.global + at, step, {.write = false});
      reading |= 1u << lane;
    }
    access(w, lane, Space::shared, copy.shared, copy.bytes, {.write = true});
    from[lane] = copy.global, to[lane] = copy.shared;
    mark_pending(w, copy, 1);
    w.copies.push_back(copy);
  }
  count_access(w, Space::global, from, reading, i.imm[0], false);
  count_access(w, Space::shared, to, mask, i.imm[0], true);
}

void land(Warp& w, const PendingCopy& copy) {
  ++w.landed[copy.lane];
  mark_pending(w, copy, -1);
  uint8_t* to = access(w, copy.lane, Space::shared, copy.shared, copy.bytes, {.write = true});
  std::memset(to, 0, copy.bytes);
  if (copy.source_bytes) std::memcpy(to, reinterpret_cast<const uint8_t*>(copy.global), copy.source_bytes);
}

template <class Landed>
void land_where(Warp& w, uint32_t mask, Landed landed) {
  std::vector<PendingCopy> rest;
  for (const PendingCopy& copy : w.copies) {
    if (has(mask, copy.lane) && landed(copy)) {
      land(w, copy);
    } else {
      rest.push_back(copy);
    }
  }
  w.copies.swap(rest);
}

void cp_commit(Warp& w, const Inst&, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) w.copy_group[lane] += has(mask, lane);
}

// imm: [0] how many of the latest groups may stay under way.
void cp_wait_group(Warp& w, const Inst& i, uint32_t mask) {
  land_where(w, mask, [&](const PendingCopy& copy) { return copy.group + i.imm[0] < w.copy_group[copy.lane]; });
}

void cp_wait_all(Warp& w, const Inst&, uint32_t mask) {
  land_where(w, mask, [](const PendingCopy&) { return true; });
}

const bool registered = [] {
  add("cp.async", cp_async), add("cp.async.commit", cp_commit);
  add("cp.async.wait_group", cp_wait_group), add("cp.async.wait_all", cp_wait_all);
  return true;
}();

}  // namespace

void land_first(Warp& w, int lane, int count) {
  land_where(w, 1u << lane, [&](const PendingCopy&) { return w.landed[lane] < count; });
}

}  // namespace emu
