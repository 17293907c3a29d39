// setmaxnreg: a warpgroup gives registers back to its block, or waits until the block has enough for it.
#include "machine.h"

namespace emu {
namespace {

// imm: [0] registers per thread afterwards, [1] more than before, not fewer, [2] what the kernel began with; 0: not
// known, so that nothing is counted.
void set_registers(Warp& first, const Inst& i, uint32_t) {
  Block& b = *first.block;
  Warpgroup& g = warpgroup_of(first);
  const int64_t wanted = i.imm[0];
  if (i.imm[2] == 0) return;
  if (g.registers == 0) g.registers = i.imm[2];
  if (i.imm[1] ? wanted < g.registers : wanted > g.registers) {
    fault(kInvalid, 0, "setmaxnreg.%s to %lld registers from %lld", i.imm[1] ? "inc" : "dec",
          static_cast<long long>(wanted), static_cast<long long>(g.registers));
  }
  if (i.imm[1]) {
    g.wanted = wanted;  // resume_warpgroups takes them when they are there
  } else {
    b.warpgroups.free_registers += (g.registers - wanted) * kGroupWarps * kLanes;
    g.registers = wanted;
  }
}

const bool registered = [] {
  add("setmaxnreg", set_registers, Kind::warpgroup);
  return true;
}();

}  // namespace
}  // namespace emu
