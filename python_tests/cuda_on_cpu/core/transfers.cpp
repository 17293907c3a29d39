// Copies under way: they land when the scheduler says so, no earlier than somebody needs them at seed 0.
#include <algorithm>

#include "async_proxy.h"
#include "reductions.h"

namespace emu {
namespace {

constexpr int kOverdue = 8;  // turns of the cluster, after which a copy lands although others could go on

void land_in(Cluster& c, const Transfer& t, Mbarrier& m) {
  Block& b = *m.block;
  if (b.exited) {
    fault(kOutOfBounds, t.lane, "the bulk copy of {inst %d} lands in shared memory of a block that has exited", t.inst);
  }
  const uint32_t clock = ++c.landings[m.place - c.warps()];
  size_t done = 0;
  for (const Piece& piece : t.pieces) {
    uint8_t* to = b.shared.data() + piece.shared;
    if (!t.data.empty()) {
      std::memcpy(to, t.data.data() + done, piece.bytes);
    } else if (piece.global) {
      std::memcpy(to, reinterpret_cast<const uint8_t*>(piece.global), piece.bytes);
    } else {
      std::memset(to, 0, piece.bytes);
    }
    done += piece.bytes;
    async_wrote(b, piece.shared, piece.bytes, m.place, clock);
  }
  note_far(b, m.place, clock);
  if (m.arriving.clock.size() <= static_cast<size_t>(m.place)) m.arriving.clock.resize(m.place + 1);
  m.arriving.clock[m.place] = clock;
  complete_bytes(m, t.total, t.lane);
}

void land(Cluster& c, size_t index) {
  const Transfer t = std::move(c.transfers[index]);
  c.transfers.erase(c.transfers.begin() + index);
  c.machine->running = t.warp;
  c.expiries = 0;
  if (t.cp_asyncs >= 0) {
    land_first(*t.warp, t.lane, t.cp_asyncs);
    release(*t.warp, 1u << t.lane, t.targets[0]->arriving);
    return arrive(*t.targets[0], 1, t.lane);
  }
  if (t.source_bytes) guard(*t.warp->block, t.source, t.source_bytes, -kOneReader);
  for (Mbarrier* m : t.targets) land_in(c, t, *m);
}

// The source of a store may be written again: others must know that its thread has waited.
void let_go(Store& store) {
  if (store.read) return;
  store.read = true;
  Block& b = *store.warp->block;
  for (const Piece& piece : store.pieces) {
    guard(b, piece.shared, piece.bytes, -kOneReader);
    touch_shared(b, *store.warp, store.lane, piece.shared, piece.bytes, {.write = false});
  }
}

}  // namespace

void begin(Cluster& c, Transfer t) {
  if (t.cp_asyncs < 0) {
    for (const Mbarrier* m : t.targets) {
      for (const Piece& piece : t.pieces) async_write(*m->block, *t.warp, t.lane, piece.shared, piece.bytes);
    }
    ++c.machine->counts.bulk_copies;
    c.machine->counts.bulk_bytes += static_cast<uint64_t>(t.total) * t.targets.size();
  }
  c.transfers.push_back(std::move(t));
}

void begin(Cluster& c, Store store) {
  Block& b = *store.warp->block;
  for (const Piece& piece : store.pieces) {
    async_read(b, *store.warp, store.lane, piece.shared, piece.bytes, "a bulk copy");
    const uint8_t* from = b.shared.data() + piece.shared;
    const Use use{.write = true, .data = from};
    check_global(*store.warp, store.lane, piece.global, piece.bytes, true, store.reduction < 0 ? &use : nullptr);
    store.data.insert(store.data.end(), from, from + piece.bytes);
    guard(b, piece.shared, piece.bytes, kOneReader);
  }
  ++c.machine->counts.bulk_copies;
  c.machine->counts.bulk_bytes += store.data.size();
  c.stores.push_back(std::move(store));
}

bool land_next(Cluster& c, bool overdue) {
  for (size_t k = 0; k < c.transfers.size(); ++k) {
    if (overdue && ++c.transfers[k].age <= kOverdue) continue;
    const bool any = !overdue && c.machine->launch.seed != 0;
    land(c, any ? c.machine->random() % c.transfers.size() : k);
    return true;
  }
  return false;
}

void land_some(Cluster& c) {
  Machine& m = *c.machine;
  for (size_t k = c.transfers.size(); k-- > 0;) {
    if (m.random() % 8 == 0) land(c, k);
  }
  for (size_t k = c.stores.size(); k-- > 0;) {
    if (!c.stores[k].read || m.random() % 8 != 0) continue;
    write_global(c.stores[k]);
    c.stores.erase(c.stores.begin() + k);
  }
}

void write_global(Store& store) {
  size_t done = 0;
  for (const Piece& piece : store.pieces) {
    auto* to = reinterpret_cast<uint8_t*>(piece.global);
    const uint8_t* from = store.data.data() + done;
    if (store.reduction < 0) {
      std::memcpy(to, from, piece.bytes);
    } else {
      reduce(to, from, piece.bytes, store.reduction, store.type);
    }
    done += piece.bytes;
  }
}

void wait_stores(Warp& w, uint32_t lanes, uint32_t groups, bool read_only) {
  auto& stores = w.block->cluster->stores;
  std::vector<Store> rest;
  for (Store& store : stores) {
    const bool mine = store.warp == &w && has(lanes, store.lane);
    const bool due = mine && store.group + groups < w.bulk_group[store.lane];
    if (due) let_go(store);
    if (due && !read_only) {
      write_global(store);
    } else {
      rest.push_back(std::move(store));
    }
  }
  stores.swap(rest);
}

}  // namespace emu
