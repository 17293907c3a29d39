// Runs a launch: the table of handlers, blocks and their warps in the order that the seed decides.
#include "machine.h"

#include <algorithm>
#include <memory>

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

uint64_t special(const Machine& m, const Warp& w, int lane, int which) {
  const uint32_t* size = m.launch.block;
  const uint32_t thread = w.thread(lane), bit = 1u << lane;
  switch (which) {
    case kTidX:
      return thread % size[0];
    case kTidY:
      return thread / size[0] % size[1];
    case kTidZ:
      return thread / size[0] / size[1];
    case kNtidX:
    case kNtidY:
    case kNtidZ:
      return size[which - kNtidX];
    case kCtaidX:
    case kCtaidY:
    case kCtaidZ:
      return w.block->id[which - kCtaidX];
    case kNctaidX:
    case kNctaidY:
    case kNctaidZ:
      return m.launch.grid[which - kNctaidX];
    case kLaneId:
      return lane;
    case kWarpId:
      return w.index;
    case kLanemaskEq:
      return bit;
    case kLanemaskLt:
      return bit - 1;
    case kLanemaskLe:
      return bit | (bit - 1);
    case kLanemaskGt:
      return ~(bit | (bit - 1));
    case kLanemaskGe:
      return ~(bit - 1);
    case kDynamicShared:
      return m.launch.dynamic_shared;
    default:
      return m.launch.dynamic_shared + m.program.static_shared;
  }
}

void start(Machine& m, Warp& w) {
  const Program& p = m.program;
  w.storage.assign(p.register_bytes + 64, 0xab);
  w.registers = w.storage.data() + (64 - reinterpret_cast<uintptr_t>(w.storage.data()) % 64);
  w.local.assign(kLanes * p.local_bytes, 0xcd);
  w.clock.assign(w.block->warps.size(), 0);
  w.clock[w.index] = 1;
  const int threads = m.launch.block[0] * m.launch.block[1] * m.launch.block[2];
  w.live = 0;
  std::fill_n(&w.known[0][0], kLanes * kLanes, 0);
  for (int lane = 0; lane < kLanes; ++lane) w.known[lane][lane] = 1;
  for (int lane = 0; lane < kLanes; ++lane) {
    w.pc[lane] = 0;
    const bool exists = w.thread(lane) < threads;
    w.state[lane] = exists ? Lane::run : Lane::exited;
    w.live |= static_cast<uint32_t>(exists) << lane;
  }
  for (int64_t k = 0; k < p.num_inits; ++k) {
    const Init& init = p.inits[k];
    if (init.kind == kConstPred) predicate(w, init.offset) = init.value ? ~0u : 0;
    for (int lane = 0; lane < kLanes && init.kind != kConstPred; ++lane) {
      const uint64_t value = init.kind == kSpecial ? special(m, w, lane, init.value) : init.value;
      init.kind == kConst64 ? set<uint64_t>(w, init.offset, lane, value) : set<uint32_t>(w, init.offset, lane, value);
    }
  }
}

// A block that has ended leaves its memory to the next.
void reuse(Block& block, std::unique_ptr<Block>& old) {
  if (!old) return;
  block.shared.swap(old->shared), block.written.swap(old->written), block.pending.swap(old->pending);
  block.cells.swap(old->cells), block.reads.swap(old->reads);
  for (size_t k = 0; k < block.warps.size(); ++k) {
    block.warps[k].storage.swap(old->warps[k].storage), block.warps[k].local.swap(old->warps[k].local);
  }
  old.reset();
}

std::unique_ptr<Block> make_block(Machine& m, uint64_t index) {
  auto block = std::make_unique<Block>();
  const int threads = m.launch.block[0] * m.launch.block[1] * m.launch.block[2];
  block->warps.resize((threads + kLanes - 1) / kLanes);
  reuse(*block, m.ended);
  block->number = index + 1;
  const uint32_t* grid = m.launch.grid;
  block->machine = &m;
  block->id[0] = index % grid[0], block->id[1] = index / grid[0] % grid[1], block->id[2] = index / grid[0] / grid[1];
  const size_t shared = m.program.static_shared + m.launch.dynamic_shared;
  block->shared.assign(shared, 0xcd);
  block->written.assign(shared + 1, 0);
  block->pending.assign(shared + 1, 0);
  block->cells.assign(shared / 4 + 1, Cell{});
  if (!block->reads) block->reads.reset(new Touch[block->cells.size() * block->warps.size()]);
  for (size_t k = 0; k < block->warps.size(); ++k) {
    block->warps[k].block = block.get();
    block->warps[k].index = k;
    start(m, block->warps[k]);
  }
  start_warpgroups(*block);
  return block;
}

// One turn for every warp of a block, in an order that the seed decides.
void turn(Machine& m, Block& block, Runner& runner) {
  std::vector<Warp*> order;
  for (Warp& w : block.warps) order.push_back(&w);
  if (m.launch.seed != 0) {
    for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[m.random() % k]);
  }
  bool progress = false;
  for (Warp* w : order) progress |= runner.run(*w, m.launch.seed != 0 ? 1 + m.random() % 64 : 4096);
  if (!progress && runner.live()) runner.stuck();
}

// Turns for a block; whether any of its warps goes on. In order, a block has another for every barrier that it passes:
// what it works on is still in the caches.
bool turns(Machine& m, Block& block) {
  Runner runner(m, block);
  for (uint64_t barriers = ~0ull; runner.live() && m.counts.barriers != barriers;) {
    barriers = m.counts.barriers;
    turn(m, block, runner);
    if (m.launch.seed != 0) break;
  }
  return runner.live();
}

void run_all(Machine& m, std::vector<std::unique_ptr<Block>>& resident) {
  const uint64_t total = static_cast<uint64_t>(m.launch.grid[0]) * m.launch.grid[1] * m.launch.grid[2];
  std::vector<uint64_t> order(total);
  for (uint64_t k = 0; k < total; ++k) order[k] = k;
  // GPUs start blocks in order, and kernels such as CUB's scan rely on that: a block may wait for any before it. Those
  // that fit in together may start in any order.
  const uint64_t together = std::max<uint64_t>(m.launch.resident, 1);
  for (uint64_t first = 0; m.launch.seed != 0 && first < total; first += together) {
    const uint64_t count = std::min(together, total - first);
    for (uint64_t k = count; k > 1; --k) std::swap(order[first + k - 1], order[first + m.random() % k]);
  }
  for (uint64_t next = 0; next < total || !resident.empty();) {
    while (next < total && resident.size() < static_cast<size_t>(m.launch.resident)) {
      resident.push_back(make_block(m, order[next++]));
      if (m.launch.seed != 0 || turns(m, *resident.back())) continue;
      m.ended = std::move(resident.back());
      resident.pop_back();
    }
    for (size_t k = 0; k < resident.size();) {
      if (turns(m, *resident[k])) {
        ++k;
      } else {
        m.ended = std::move(resident[k]);
        resident.erase(resident.begin() + k);
      }
    }
  }
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
  std::vector<std::unique_ptr<Block>> resident;  // outlives a fault, which names one of its warps
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
