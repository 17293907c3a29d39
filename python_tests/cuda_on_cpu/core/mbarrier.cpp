// mbarrier: arrivals and bytes complete its phases, and who sees a phase complete knows what came before.
#include <algorithm>

#include "async_proxy.h"

namespace emu {
namespace {

constexpr int64_t kMost = (1 << 20) - 1;  // arrivals, and bytes of either sign

enum Flag { kHasCount = 1, kExpectTx = 2, kDrop = 4, kNoComplete = 8, kRelaxed = 16, kTest = 32, kParity = 64 };

std::pair<Block*, uint32_t> place(Warp& w, const Inst& i, int lane) {
  uint64_t address = operand_address(w, i, 0, lane);
  Block& b = shared_block(w, lane, static_cast<Space>(i.imm[5]), address);
  return {&b, static_cast<uint32_t>(address)};
}

Mbarrier& operand(Warp& w, const Inst& i, int lane) {
  const auto [b, address] = place(w, i, lane);
  if (b != w.block) note_far(*b, w.number, w.clock[w.number]);
  return mbarrier_at(w, lane, *b, address);
}

void wake(Block& b, uint32_t address) {
  b.cluster->expiries = 0;
  for (Warp& w : b.warps) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (w.state[lane] == Lane::waiting && w.wait_for[lane] == address) w.state[lane] = Lane::run;
    }
  }
}

void complete_if_due(Mbarrier& m) {
  if (m.pending || m.bytes) return;
  ++m.phase, m.pending = m.expected;
  join(m.completed, m.arriving);
  wake(*m.block, m.address);
}

void expect_bytes(Mbarrier& m, int64_t bytes, int lane) {
  m.bytes += bytes;
  if (m.bytes > kMost || m.bytes < -kMost) {
    fault(kInvalid, lane, "the tx-count of the mbarrier at %u becomes %lld; it holds 2^20 - 1", m.address,
          static_cast<long long>(m.bytes));
  }
}

// Operands: address, count.
void init(Warp& w, const Inst& i, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const auto [b, address] = place(w, i, lane);
    const uint32_t count = get<uint32_t>(w, operands(w, i)[1], lane);
    if (count < 1 || count > kMost) fault(kInvalid, lane, "mbarrier.init for %u arrivals", count);
    Cluster& c = *b->cluster;
    const uint64_t key = shared_key(*b, address);
    if (c.mbarriers.count(key)) {
      fault(kInvalid, lane, "mbarrier.init at %u, where an mbarrier is in use: no mbarrier.inval", address);
    }
    access(w, lane, Space::shared, address, 8, {.write = true});
    guard(*b, address, 8, kMbarrier);
    if (!c.places.count(key)) {
      c.places[key] = c.warps() + c.landings.size();
      c.landings.push_back(0);
    }
    Mbarrier m{b, address, count, count};
    m.place = c.places[key];
    m.init = {w.clock[w.number], w.sync_epoch, w.known[lane][lane], 1u << lane, 0xf, false}, m.init_warp = w.number;
    c.mbarriers.emplace(key, std::move(m));
  }
}

void inval(Warp& w, const Inst& i, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    Mbarrier& m = operand(w, i, lane);
    for (const Transfer& t : w.block->cluster->transfers) {
      for (const Mbarrier* target : t.targets) {
        if (target == &m) fault(kInvalid, lane, "mbarrier.inval at %u while copies report to it", m.address);
      }
    }
    guard(*m.block, m.address, 8, -kMbarrier);
    w.block->cluster->mbarriers.erase(shared_key(*m.block, m.address));
  }
}

// Operands: address, state or -1, count or -1, bytes or -1. imm: [4] Flag.
void arrive_on(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    Mbarrier& m = operand(w, i, lane);
    const uint32_t count = o[2] >= 0 ? get<uint32_t>(w, o[2], lane) : 1;
    const uint64_t state = static_cast<uint64_t>(m.phase) << 32 | m.pending;
    if (o[3] >= 0) expect_bytes(m, get<uint32_t>(w, o[3], lane), lane);
    if (i.imm[4] & kDrop) m.expected -= std::min(m.expected, count);
    if ((i.imm[4] & kNoComplete) && count >= m.pending) {
      fault(kInvalid, lane, "arrive.noComplete would complete the phase of the mbarrier at %u", m.address);
    }
    i.imm[4] & kRelaxed ? release_relaxed(w, m.arriving) : release(w, 1u << lane, m.arriving);
    arrive(m, count, lane);
    if (o[1] >= 0) set<uint64_t>(w, o[1], lane, state);
  }
}

// Operands: address, bytes.
template <int kSign>
void change_bytes(Warp& w, const Inst& i, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    Mbarrier& m = operand(w, i, lane);
    expect_bytes(m, kSign * static_cast<int64_t>(get<uint32_t>(w, operands(w, i)[1], lane)), lane);
    complete_if_due(m);
    w.block->cluster->expiries = 0;
  }
}

bool complete(const Mbarrier& m, const Inst& i, uint64_t which, int lane) {
  if (i.imm[4] & kParity) {
    if (which > 1) fault(kInvalid, lane, "a parity of %llu", static_cast<unsigned long long>(which));
    return (m.phase & 1) != which;
  }
  const uint32_t phase = which >> 32;
  if (phase != m.phase && phase + 1 != m.phase) {
    fault(kInvalid, lane, "a state of phase %u at the mbarrier at %u in phase %u", phase, m.address, m.phase);
  }
  return phase != m.phase;
}

// A wait that must fail: at once, or not before something has happened. Both are allowed.
void fail(Warp& w, const Inst& i, int lane, uint32_t address) {
  Machine& machine = *w.block->machine;
  const bool at_once = machine.launch.seed != 0 && machine.random() % (i.imm[4] & kTest ? 2 : 8) == 0;
  if (at_once || has(w.expired, lane)) {
    w.expired &= ~(1u << lane);
    w.yields = true;
    set_predicate(w, operands(w, i)[1], 1u << lane, 0);
  } else {
    w.parked |= 1u << lane;
    w.wait_for[lane] = address;
  }
}

// Operands: address, predicate, state or parity. imm: [4] Flag.
void wait(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  std::map<Mbarrier*, uint32_t> passed;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    Mbarrier& m = operand(w, i, lane);
    const uint64_t which = i.imm[4] & kParity ? get<uint32_t>(w, o[2], lane) : get<uint64_t>(w, o[2], lane);
    if (complete(m, i, which, lane)) {
      passed[&m] |= 1u << lane;
      w.expired &= ~(1u << lane);
      set_predicate(w, o[1], 1u << lane, ~0u);
    } else {
      fail(w, i, lane, m.address);
    }
  }
  for (const auto& [m, lanes] : passed) {
    i.imm[4] & kRelaxed ? acquire_relaxed(w, m->completed) : acquire(w, lanes, m->completed);
  }
}

// Operands: d, state.
void pending_count(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (has(mask, lane)) set<uint32_t>(w, o[0], lane, get<uint64_t>(w, o[1], lane));
  }
}

// Arrives when the cp.async of its lane are there. imm: [4] noinc.
void arrive_after_copies(Warp& w, const Inst& i, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    Mbarrier& m = operand(w, i, lane);
    if (!i.imm[4] && ++m.pending > kMost) fault(kInvalid, lane, "too many arrivals at the mbarrier at %u", m.address);
    Transfer t{&w, lane, static_cast<int>(&i - w.block->machine->program.insts)};
    t.targets = {&m}, t.cp_asyncs = 0;
    for (const PendingCopy& copy : w.copies) t.cp_asyncs += copy.lane == lane;
    t.cp_asyncs += w.landed[lane];
    begin(*w.block->cluster, std::move(t));
  }
}

const bool registered = [] {
  add("mbarrier.init", init), add("mbarrier.inval", inval), add("mbarrier.arrive", arrive_on);
  add("mbarrier.expect_tx", change_bytes<1>), add("mbarrier.complete_tx", change_bytes<-1>);
  add("mbarrier.wait", wait), add("mbarrier.pending_count", pending_count);
  add("cp.async.mbarrier.arrive", arrive_after_copies);
  return true;
}();

}  // namespace

Mbarrier& mbarrier_at(Warp& w, int lane, Block& b, uint32_t address) {
  if (address % 8) fault(kMisaligned, lane, "an mbarrier at %u is not aligned to 8 bytes", address);
  const auto found = b.cluster->mbarriers.find(shared_key(b, address));
  if (found == b.cluster->mbarriers.end()) {
    fault(kInvalid, lane, "there is no initialised mbarrier at %u of shared memory", address);
  }
  Mbarrier& m = found->second;
  if (!ordered(w, lane, m.init, m.init_warp)) {
    const int by = m.init_warp % b.warps.size() * kLanes + __builtin_ctz(m.init.lanes);
    fault(kSharedRace, lane, "use of the mbarrier at %u after its init by thread %d, with no synchronisation between",
          address, by);
  }
  return m;
}

void complete_bytes(Mbarrier& m, int64_t bytes, int lane) {
  expect_bytes(m, -bytes, lane);
  complete_if_due(m);
}

void arrive(Mbarrier& m, uint32_t count, int lane) {
  if (count < 1 || count > m.pending) {
    fault(kInvalid, lane, "%u arrivals at the mbarrier at %u, whose phase %u waits for %u", count, m.address, m.phase,
          m.pending);
  }
  m.pending -= count;
  m.block->cluster->expiries = 0;
  complete_if_due(m);
}

}  // namespace emu
