// mma.sync of f64. Each sum is a chain of fused multiply-adds in the order of k, where PTX leaves the order open.
#include <cmath>

#include "lanes.h"

namespace emu {
namespace {

// Operands: d, a, b, c registers. imm: [0] rows, 8 or 16, [1] k.
void mma_f64(Warp& w, const Inst& i, uint32_t) {
  const int32_t* o = operands(w, i);
  const int rows = i.imm[0], k = i.imm[1], halves = rows / 8, a_count = halves * k / 4, b_count = k / 4;
  const int32_t *a_at = o + 2 * halves, *b_at = a_at + a_count, *c_at = b_at + b_count;
  double a[16][16] = {}, b[16][8] = {}, d[4][kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int r = 0; r < a_count; ++r) {
      a[lane / 4 + 8 * (r % halves)][lane % 4 + 4 * (r / halves)] = get<double>(w, a_at[r], lane);
    }
    for (int r = 0; r < b_count; ++r) b[lane % 4 + 4 * r][lane / 4] = get<double>(w, b_at[r], lane);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int r = 0; r < 2 * halves; ++r) {
      const int row = lane / 4 + 8 * (r / 2), column = lane % 4 * 2 + r % 2;
      double sum = get<double>(w, c_at[r], lane);
      for (int x = 0; x < k; ++x) sum = std::fma(a[row][x], b[x][column], sum);
      d[r][lane] = sum;
    }
  }
  for (int r = 0; r < 2 * halves; ++r) {
    for (int lane = 0; lane < kLanes; ++lane) set<double>(w, o[r], lane, d[r][lane]);
  }
  w.block->machine->counts.tensor_flops += 2 * rows * 8 * k;
}

const bool registered = [] {
  add("mma.f64", mma_f64, Kind::sync);
  return true;
}();

}  // namespace
}  // namespace emu
