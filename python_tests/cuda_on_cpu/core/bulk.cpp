// cp.async.bulk and cp.reduce.async.bulk of plain bytes, st.async, and the groups of bulk stores.
#include "bulk.h"

#include <algorithm>

namespace emu {

std::vector<Mbarrier*> targets_of(Warp& w, int lane, uint64_t& to, uint64_t barrier, int multicast) {
  Block& b = shared_block(w, lane, Space::cluster, to);
  Block& at = shared_block(w, lane, Space::cluster, barrier);
  if (&b != &at) fault(kInvalid, lane, "the mbarrier of a bulk copy is not in the shared memory that it writes");
  if (multicast < 0) return {&mbarrier_at(w, lane, b, barrier)};
  std::vector<Mbarrier*> out;
  for (uint32_t rank = 0; rank < 16; ++rank) {
    if (!(multicast >> rank & 1)) continue;
    uint64_t peer = static_cast<uint64_t>(rank + 1) << kRankShift;
    out.push_back(&mbarrier_at(w, lane, block_of(w, lane, peer), barrier));
  }
  return out;
}

void check_aligned(uint64_t address, uint32_t alignment, int lane, const char* what) {
  if (address % alignment == 0) return;
  fault(kMisaligned, lane, "a bulk copy's %s, 0x%llx, is not a multiple of %u", what,
        static_cast<unsigned long long>(address), alignment);
}

int number(const Warp& w, const Inst& i) { return &i - w.block->machine->program.insts; }

namespace {

// Operands: to, from, mbarrier, bytes, mask or -1. imm: see operand_address; [4] the source is in shared memory.
void load(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    uint64_t to = operand_address(w, i, 0, lane), from = operand_address(w, i, 1, lane);
    const uint32_t bytes = get<uint32_t>(w, o[3], lane);
    check_aligned(bytes, 16, lane, "size");
    Transfer t{&w, lane, number(w, i)};
    const int multicast = o[4] >= 0 ? get<uint16_t>(w, o[4], lane) : -1;
    t.targets = targets_of(w, lane, to, operand_address(w, i, 2, lane), multicast);
    t.total = bytes;
    check_aligned(to, 16, lane, "destination"), check_aligned(from, 16, lane, "source");
    t.pieces = {{static_cast<uint32_t>(to), bytes, from}};
    if (i.imm[4]) {
      shared_block(w, lane, Space::shared, from);
      Block& b = *w.block;
      async_read(b, w, lane, from, bytes, "a bulk copy");
      t.data.assign(b.shared.begin() + from, b.shared.begin() + from + bytes);
      t.source = from, t.source_bytes = bytes;
      guard(b, from, bytes, kOneReader);
    } else {
      const Use use{.write = false};
      check_global(w, lane, from, bytes, false, &use);
    }
    begin(*w.block->cluster, std::move(t));
  }
}

// Operands: to, from, -1, bytes. imm: [4] Reduction or -1, [5] its type.
void store(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const uint64_t to = operand_address(w, i, 0, lane);
    uint64_t from = operand_address(w, i, 1, lane);
    const uint32_t bytes = get<uint32_t>(w, o[3], lane);
    check_aligned(bytes, 16, lane, "size"), check_aligned(to, 16, lane, "destination");
    shared_block(w, lane, Space::shared, from);
    check_aligned(from, 16, lane, "source");
    Store s{&w, lane, number(w, i), w.bulk_group[lane]};
    s.pieces = {{static_cast<uint32_t>(from), bytes, to}};
    s.reduction = i.imm[4], s.type = i.imm[5];
    begin(*w.block->cluster, std::move(s));
  }
}

// Operands: address, -1, mbarrier, values. imm: [4] bytes of each.
void store_async(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  const int bytes = i.imm[4];
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    uint64_t to = operand_address(w, i, 0, lane);
    Transfer t{&w, lane, number(w, i)};
    t.targets = targets_of(w, lane, to, operand_address(w, i, 2, lane), -1);
    t.total = bytes * (i.count - 3);
    check_aligned(to, t.total, lane, "destination");
    t.pieces = {{static_cast<uint32_t>(to), t.total, 0}};
    for (int k = 3; k < i.count; ++k) {
      const uint64_t value = bytes == 8 ? get<uint64_t>(w, o[k], lane) : get<uint32_t>(w, o[k], lane);
      const auto* from = reinterpret_cast<const uint8_t*>(&value);
      t.data.insert(t.data.end(), from, from + bytes);
    }
    begin(*w.block->cluster, std::move(t));
  }
}

// Operands: -1, from, -1, bytes.
void prefetch(Warp& w, const Inst& i, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const uint64_t from = operand_address(w, i, 1, lane);
    const uint32_t bytes = get<uint32_t>(w, operands(w, i)[3], lane);
    check_aligned(bytes, 16, lane, "size"), check_aligned(from, 16, lane, "source");
    check_global(w, lane, from, bytes, false, nullptr);
    ++w.block->machine->counts.prefetches;
  }
}

void commit(Warp& w, const Inst&, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) w.bulk_group[lane] += has(mask, lane);
}

const bool registered = [] {
  add("bulk.load", load), add("bulk.store", store), add("bulk.prefetch", prefetch), add("st.async", store_async);
  add("bulk.commit", commit);
  add("bulk.wait", [](Warp& w, const Inst& i, uint32_t mask) { wait_stores(w, mask, i.imm[0], i.imm[1]); });
  add("fence.proxy.async", [](Warp& w, const Inst&, uint32_t mask) { proxy_fence(w, mask); });
  add("yield", [](Warp& w, const Inst&, uint32_t) { w.yields = true; });
  return true;
}();

}  // namespace
}  // namespace emu
