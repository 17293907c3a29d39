// Runs a launch: the table of handlers, blocks and their warps in the order that the seed decides.
#include "machine.h"

#include <algorithm>
#include <memory>

#include "async_proxy.h"
#include "runner.h"

namespace emu {
namespace {

struct Table {
  std::map<std::string, int> index;
  std::vector<HandlerEntry> entries;
};

Table& table() {
  static Table t;
  return t;
}

// Blocks whose threads have all exited; whether others are there.
bool any_live(Machine& m, Cluster& c) {
  bool live = false;
  for (auto& block : c.blocks) {
    const bool goes_on = Runner(m, *block).live();
    if (!goes_on && !block->exited) check_exit(*block), block->exited = true;
    live |= goes_on;
  }
  return live;
}

// One turn for every warp of a cluster, in an order that the seed decides; whether any of them goes on.
bool turn(Machine& m, Cluster& c) {
  std::vector<Warp*> order;
  for (auto& block : c.blocks) {
    for (Warp& w : block->warps) order.push_back(&w);
  }
  if (m.launch.seed != 0) {
    for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[m.random() % k]);
    land_some(c);
  }
  bool progress = false;
  for (Warp* w : order) {
    progress |= Runner(m, *w->block).run(*w, m.launch.seed != 0 ? 1 + m.random() % 64 : 4096);
  }
  const bool live = any_live(m, c);
  if (progress) {
    land_next(c, true);
  } else if (live && !land_next(c, false) && !expire(c)) {
    stuck(c);
  }
  return live;
}

// Turns for a cluster; whether any of its warps goes on. In order, it has another for every barrier that it passes:
// what it works on is still in the caches.
bool turns(Machine& m, Cluster& c) {
  for (uint64_t barriers = ~0ull; m.counts.barriers != barriers;) {
    barriers = m.counts.barriers;
    if (!turn(m, c)) return false;
    if (m.launch.seed != 0) break;
  }
  return true;
}

void run_all(Machine& m, std::vector<std::unique_ptr<Cluster>>& resident) {
  const uint32_t* size = m.launch.cluster;
  const uint64_t blocks = static_cast<uint64_t>(m.launch.grid[0]) * m.launch.grid[1] * m.launch.grid[2];
  const uint64_t each = static_cast<uint64_t>(size[0]) * size[1] * size[2], total = blocks / each;
  std::vector<uint64_t> order(total);
  for (uint64_t k = 0; k < total; ++k) order[k] = k;
  // GPUs start blocks in order, and kernels such as CUB's scan rely on that: a block may wait for any before it. Those
  // that fit in together may start in any order.
  const uint64_t together = std::max<uint64_t>(1, m.launch.resident / each);
  for (uint64_t first = 0; m.launch.seed != 0 && first < total; first += together) {
    const uint64_t count = std::min(together, total - first);
    for (uint64_t k = count; k > 1; --k) std::swap(order[first + k - 1], order[first + m.random() % k]);
  }
  std::vector<Store> late;  // whose bytes nobody has waited for
  const auto end = [&](size_t k) {
    std::move(resident[k]->stores.begin(), resident[k]->stores.end(), std::back_inserter(late));
    m.ended = std::move(resident[k]->blocks.back());
    resident.erase(resident.begin() + k);
  };
  for (uint64_t next = 0; next < total || !resident.empty();) {
    while (next < total && resident.size() < together) {
      resident.push_back(make_cluster(m, order[next++]));
      if (m.launch.seed == 0 && !turns(m, *resident.back())) end(resident.size() - 1);
    }
    for (size_t k = 0; k < resident.size();) {
      if (turns(m, *resident[k])) {
        ++k;
      } else {
        end(k);
      }
    }
  }
  for (Store& store : late) write_global(store);
}

}  // namespace

void add(const std::string& name, Handler run, Kind kind) {
  Table& t = table();
  t.index[name] = t.entries.size();
  t.entries.push_back({run, kind});
}

const HandlerEntry& handler(int index) { return table().entries[index]; }

uint32_t Machine::random() {
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return random_state >> 16;
}

void Machine::warn(const Warp& w, int lane, const std::string& text, WarningKind kind) {
  const size_t where = w.current - program.insts;
  if (warned[where]) return;
  warned[where] = 1;
  const uint32_t* id = w.block->id;
  warnings.push_back(std::to_string(where) + "\t" + std::to_string(id[0]) + "," + std::to_string(id[1]) + "," +
                     std::to_string(id[2]) + "\t" + std::to_string(w.thread(lane)) + "\t" + std::to_string(kind) +
                     "\t" + text);
}

namespace {

const bool registered = [] {
  const Handler none = [](Warp&, const Inst&, uint32_t) {};
  add("bra", none, Kind::branch), add("bra.indirect", none, Kind::indirect), add("exit", none, Kind::exit);
  add("barrier", none, Kind::barrier);
  add("trap", [](Warp&, const Inst&, uint32_t mask) { fault(kTrap, __builtin_ctz(mask), "trap"); });
  return true;
}();

std::string warning_text;

}  // namespace

extern "C" {

int emu_handler(const char* name) {
  const auto found = table().index.find(name);
  return found == table().index.end() ? -1 : found->second;
}

const char* emu_warnings() { return warning_text.c_str(); }

int emu_launch(const Program* program, const Launch* launch, Counts* counts, Fault* fault) {
  Machine m;
  m.program = *program, m.launch = *launch, m.random_state = launch->seed * 0x9e3779b97f4a7c15ull + 1;
  m.warned.assign(program->num_insts, 0);
  m.watched = watch_registers(*program);
  m.global.resize(launch->num_buffers);
  std::vector<std::unique_ptr<Cluster>> resident;  // outlives a fault, which names one of its warps
  fault->kind = kNone;
  try {
    run_all(m, resident);
  } catch (const FaultError& e) {
    fault->kind = e.kind;
    fault->inst = m.running->current - program->insts;
    std::copy_n(m.running->block->id, 3, fault->block);
    fault->thread = m.running->thread(e.lane);
    snprintf(fault->text, sizeof(fault->text), "%s", e.text.c_str());
  }
  *counts = m.counts;
  warning_text.clear();
  for (const std::string& text : m.warnings) warning_text += text + "\n";
  return fault->kind;
}

}  // extern "C"
}  // namespace emu
