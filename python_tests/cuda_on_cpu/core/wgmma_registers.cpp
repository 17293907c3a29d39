// Registers of a wgmma under way: nobody may touch its accumulators, or change its fragments of A, before the
// wgmma.wait_group that covers it; and wgmma.fence stands between any other access and the next wgmma.
//
// mov is let through where compilers emit it. nvcc sets accumulators to constants behind a fence, and moves
// accumulators at the end of a loop; ptxas then makes the wgmma wait at once (its note C7514). So does land() here.
#include <algorithm>

#include "machine.h"

namespace emu {

extern "C" int emu_handler(const char* name);

namespace {

int mma_handler() {
  static const int index = emu_handler("wgmma.mma");
  return index;
}

int mov_handler() {
  static const int index = emu_handler("mov.b32");
  return index;
}

bool has_registers(const Inst& i) {
  const Kind kind = handler(i.handler).kind;
  return kind != Kind::branch && kind != Kind::indirect && kind != Kind::exit;
}

template <class Function>
void for_watched(const WatchedRegisters& watched, const int32_t* operands, int count, Function function) {
  for (int k = 0; k < count; ++k) {
    const int number = watched.of(operands[k]);
    if (number >= 0) function(number, operands[k]);
  }
}

const char* register_use(const Warpgroup& g, int number) { return g.writes[number] ? "accumulates in" : "multiplies"; }

void before_touch(Warp& w, const Inst& i) {
  const WatchedRegisters& watched = w.block->machine->watched;
  Warpgroup& g = warpgroup_of(w);
  const int32_t* o = operands(w, i);
  const bool moves = i.handler == mov_handler();
  const int from = moves ? watched.of(o[1]) : -1;
  if (from >= 0 && g.writes[from]) {
    w.block->machine->warn(w, 0,
                           "mov of an accumulator before its wgmma.wait_group: ptxas makes the wgmma wait at once");
    land(first_warp(w), g.committed + 1);
  }
  for_watched(watched, o, i.count, [&](int number, int32_t) {
    if (g.writes[number]) {
      fault(kRegisterRace, 0, "a wgmma.mma_async under way %s this register: wgmma.wait_group is missing before it",
            register_use(g, number));
    }
    w.use.touched[number] = moves ? from >= 0 && w.use.touched[from] : 1;
  });
}

// A fragment of A may be read while it is multiplied.
void after_touch(Warp& w, const Inst& i, uint32_t mask) {
  const WatchedRegisters& watched = w.block->machine->watched;
  const Warpgroup& g = warpgroup_of(w);
  for_watched(watched, operands(w, i), i.count, [&](int number, int32_t offset) {
    if (!g.fragments[number]) return;
    for (const Wgmma& op : g.under_way) {
      if (!(op.inst->imm[4] & kFromRegisters)) continue;
      const int32_t* a = operands(w, *op.inst) + op.inst->count - 6;
      for (int r = 0; r < 4; ++r) {
        for (int lane = 0; lane < kLanes && a[r] == offset; ++lane) {
          if (get<uint32_t>(w, offset, lane) == op.fragments[w.index % kGroupWarps][r][lane]) continue;
          fault(kRegisterRace, has(mask, lane) ? lane : 0,
                "a wgmma.mma_async under way multiplies this register: wgmma.wait_group is missing before the write");
        }
      }
    }
  });
}

}  // namespace

// imm of wgmma.mma: see wgmma.cpp.
WatchedRegisters watch_registers(const Program& p) {
  WatchedRegisters out;
  std::vector<uint8_t> constant(p.register_bytes / 64 + 4), uses(constant.size());
  for (int64_t k = 0; k < p.num_inits; ++k) constant[p.inits[k].offset / 64] = 1;
  bool any = false;
  for (const Inst* i = p.insts; i < p.insts + p.num_insts; ++i) {
    if (i->handler != mma_handler()) continue;
    const int data = i->count - (i->imm[4] & kFromRegisters ? 2 : 3);  // before the descriptors and scale-d
    for (int k = 0; k < data; ++k) uses[p.pool[i->operands + k] / 64] = 1;
    any = true;
  }
  if (!any) return out;
  for (bool changed = true; changed;) {
    changed = false;
    for (const Inst* i = p.insts; i < p.insts + p.num_insts; ++i) {
      if (i->handler != mov_handler()) continue;
      const int to = p.pool[i->operands] / 64, from = p.pool[i->operands + 1] / 64;
      if (constant[from] || uses[to] == uses[from]) continue;
      uses[to] = uses[from] = 1, changed = true;
    }
  }
  out.number.assign(uses.size(), -1);
  for (size_t k = 0; k < uses.size(); ++k) {
    if (uses[k] && !constant[k]) out.number[k] = out.count++;
  }
  out.instruction.assign(p.num_insts, 0);
  for (int64_t k = 0; k < p.num_insts; ++k) {
    const Inst& i = p.insts[k];
    if (!has_registers(i) || i.handler == mma_handler()) continue;
    for_watched(out, p.pool + i.operands, i.count, [&](int, int32_t) { out.instruction[k] = 1; });
  }
  return out;
}

// Before a wgmma of this warp: its registers have not been touched since the fence.
void check_fence(Warp& w, const Inst& i) {
  const WatchedRegisters& watched = w.block->machine->watched;
  if (!w.use.fenced) fault(kRegisterRace, 0, "wgmma.mma_async with no wgmma.fence before it");
  const int data = i.count - (i.imm[4] & kFromRegisters ? 2 : 3);
  const int accumulators = data - (i.imm[4] & kFromRegisters ? 4 : 0);
  Warpgroup& g = warpgroup_of(w);
  for_watched(watched, operands(w, i), data, [&](int number, int32_t offset) {
    if (w.use.touched[number]) {
      fault(kRegisterRace, 0, "a register of this wgmma.mma_async was read or written after the last wgmma.fence");
    }
    const bool accumulates =
        std::find(operands(w, i), operands(w, i) + accumulators, offset) != operands(w, i) + accumulators;
    if (!accumulates && g.writes[number]) {
      fault(kRegisterRace, 0, "A is in accumulators of a wgmma under way: wgmma.wait_group is missing");
    }
    if (accumulates && g.fragments[number]) {
      fault(kRegisterRace, 0, "accumulators are the A of a wgmma under way: wgmma.wait_group is missing");
    }
    uint16_t& shape = w.use.shape[number];
    if (accumulates && shape && shape != i.imm[0]) {
      fault(kRegisterRace, 0, "accumulators of a wgmma with N of %d, with no wgmma.fence between", shape);
    }
    if (accumulates) shape = static_cast<uint16_t>(i.imm[0]);
  });
}

void run_watched(Warp& w, const Inst& i, uint32_t mask) {
  const Machine& m = *w.block->machine;
  const std::vector<uint8_t>& watched = m.watched.instruction;
  const bool touches = !watched.empty() && watched[&i - m.program.insts];
  if (touches) before_touch(w, i);
  handler(i.handler).run(w, i, mask);
  if (touches) after_touch(w, i, mask);
}

void count_registers(Warp& first, const Wgmma& op, int change) {
  const WatchedRegisters& watched = first.block->machine->watched;
  Warpgroup& g = warpgroup_of(first);
  const bool from_registers = op.inst->imm[4] & kFromRegisters;
  const int32_t* o = operands(first, *op.inst);
  const int accumulators = op.inst->count - (from_registers ? 6 : 3);
  for_watched(watched, o, accumulators, [&](int number, int32_t) { g.writes[number] += change; });
  if (!from_registers) return;
  for_watched(watched, o + accumulators, 4, [&](int number, int32_t) { g.fragments[number] += change; });
}

}  // namespace emu
