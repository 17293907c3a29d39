// wgmma.mma_async and its fence, commit_group and wait_group. Operands in shared memory are read when it lands, which
// is as late as the program allows. Sums are taken in double and rounded once, where hardware truncates oftener.
#include <algorithm>

#include "formats.h"
#include "wgmma_descriptor.h"

namespace emu {
namespace {

constexpr int kRows = 64, kMostColumns = 256, kMostDepth = 32;

struct Matrices {
  double a[kRows][kMostDepth];
  double b[kMostDepth][kMostColumns];
};

// imm of wgmma.mma: [0] N, [1] the type of A, [2] of B, [3] of D, [4] WgmmaFlag. Operands: the accumulators, four
// fragments or a descriptor of A, a descriptor of B, scale-d.
int depth(const Inst& i) { return 256 / bits_of(i.imm[1]); }

int accumulators(const Inst& i) { return i.imm[0] / (i.imm[3] == f16 ? 4 : 2); }

// Each granule of an operand: function(address, row of A or column of B, k). MN-major ones go on in the former.
template <class Function>
void for_granules(const MatrixDescriptor& matrix, bool mn_major, int size, int k, int type, Function function) {
  const int per = 128 / bits_of(type);
  for (int line = 0; line < (mn_major ? k : size); ++line) {
    for (int chunk = 0; chunk < (mn_major ? size : k) / per; ++chunk) {
      if (mn_major) {
        function(matrix.along_mn(line, chunk), chunk * per, line);
      } else {
        function(matrix.along_k(line, chunk), line, chunk * per);
      }
    }
  }
}

template <class Function>
void for_elements(const Block& b, uint64_t descriptor, bool mn_major, int size, int k, int type, Function function) {
  const int bits = bits_of(type);
  for_granules(MatrixDescriptor(descriptor, 0), mn_major, size, k, type, [&](uint32_t address, int mn, int at) {
    for (int e = 0; e < 128 / bits; ++e) {
      uint32_t value;
      std::memcpy(&value, &b.shared[address + e * bits / 8], bits / 8);
      const double x = decode(value, type);
      mn_major ? function(mn + e, at, x) : function(mn, at + e, x);
    }
  });
}

// A's fragments: rows of the lane's group and 8 below, then on in k.
void load_fragments(const Wgmma& op, Matrices& m) {
  const int type = op.inst->imm[1], bits = bits_of(type), per = 32 / bits;
  for (int v = 0; v < kGroupWarps; ++v) {
    for (int r = 0; r < 4; ++r) {
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int p = 0; p < per; ++p) {
          const int row = 16 * v + lane / 4 + 8 * (r % 2), k = 4 * per * (r / 2) + lane % 4 * per + p;
          m.a[row][k] = decode(op.fragments[v][r][lane] >> (bits * p), type);
        }
      }
    }
  }
}

void load(const Block& b, const Wgmma& op, Matrices& m) {
  const Inst& i = *op.inst;
  const int64_t flags = i.imm[4];
  const double sign_a = flags & kNegateA ? -1 : 1, sign_b = flags & kNegateB ? -1 : 1;
  if (flags & kFromRegisters) {
    load_fragments(op, m);
  } else {
    for_elements(b, op.a, flags & kTransposeA, kRows, depth(i), i.imm[1],
                 [&](int row, int k, double x) { m.a[row][k] = x; });
  }
  for_elements(b, op.b, flags & kTransposeB, i.imm[0], depth(i), i.imm[2],
               [&](int column, int k, double x) { m.b[k][column] = sign_a * sign_b * x; });
}

uint32_t rounded(const Inst& i, uint32_t before, double sum) {
  if (i.imm[3] == s32) {
    const int64_t total = static_cast<int32_t>(before) + static_cast<int64_t>(sum);
    return static_cast<uint32_t>(i.imm[4] & kSaturate ? std::clamp<int64_t>(total, INT32_MIN, INT32_MAX) : total);
  }
  if (i.imm[3] == f16) return encode16(kHalf, round_to(kHalf, static_cast<long double>(decode_half(before)) + sum, 0));
  float c;
  std::memcpy(&c, &before, 4);
  c = canonical(static_cast<float>(c + sum));
  std::memcpy(&before, &c, 4);
  return before;
}

// One warp's 16 rows. Neighbouring columns share a register of f16, and are in two of f32.
void store(Warp& w, const Wgmma& op, int row, const double* sums) {
  const Inst& i = *op.inst;
  const int32_t* d = operands(w, i);
  for (int column = 0; column < i.imm[0]; ++column) {
    const int lane = row % 8 * 4 + column % 8 / 2, half = row / 8;
    const bool pairs = i.imm[3] == f16;
    const int32_t offset = d[pairs ? column / 8 * 2 + half : column / 8 * 4 + 2 * half + column % 2];
    const uint32_t all = get<uint32_t>(w, offset, lane);
    const int shift = pairs ? column % 2 * 16 : 0;
    const uint32_t before = op.accumulate ? (pairs ? all >> shift & 0xffff : all) : 0;
    const uint32_t after = rounded(i, before, sums[column]);
    set<uint32_t>(w, offset, lane, pairs ? (all & ~(0xffffu << shift)) | after << shift : after);
  }
}

void multiply(Warp& first, const Wgmma& op) {
  static thread_local Matrices m;
  Block& b = *first.block;
  load(b, op, m);
  const int n = op.inst->imm[0], k = depth(*op.inst);
  for (int row = 0; row < kRows; ++row) {
    double sums[kMostColumns] = {};
    for (int x = 0; x < k; ++x) {
      for (int column = 0; column < n; column += 8) {
        for (int e = 0; e < 8; ++e) sums[column + e] += m.a[row][x] * m.b[x][column + e];
      }
    }
    store(b.warps[first.index + row / 16], op, row % 16, sums);
  }
  b.machine->counts.tensor_flops += 2 * kRows * n * k;
}

uint64_t same_in_all(Warp& first, int32_t offset, const char* what) {
  const uint64_t value = get<uint64_t>(first, offset, 0);
  for (int v = 0; v < kGroupWarps; ++v) {
    Warp& w = first.block->warps[first.index + v];
    first.block->machine->running = &w;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (get<uint64_t>(w, offset, lane) != value) fault(kInvalid, lane, "the threads give different %s", what);
    }
  }
  return value;
}

bool scale(Warp& first, const Inst& i, int32_t offset) {
  const uint32_t value = predicate(first, offset);
  for (int v = 0; v < kGroupWarps; ++v) {
    const uint32_t own = predicate(first.block->warps[first.index + v], offset);
    if (own != value || (own != 0 && own != ~0u)) fault(kInvalid, 0, "the threads give different scale-d");
  }
  return (value != 0) != ((i.imm[4] & kScaleNegated) != 0);
}

// Run by the first of the four warps, for all of them.
void issue(Warp& first, const Inst& i, uint32_t) {
  Block& b = *first.block;
  for (int v = 0; v < kGroupWarps; ++v) {
    b.machine->running = &b.warps[first.index + v];
    check_fence(b.warps[first.index + v], i);
  }
  Warpgroup& g = warpgroup_of(first);
  const int32_t* rest = operands(first, i) + accumulators(i);
  const bool from_registers = i.imm[4] & kFromRegisters;
  Wgmma op{&i,
           g.committed,
           0,
           same_in_all(first, rest[from_registers ? 4 : 1], "descriptors of B"),
           scale(first, i, rest[from_registers ? 5 : 2]),
           {},
           {}};
  const auto read = [&](uint64_t descriptor, bool mn_major, int size, int type, auto warps) {
    for_granules(MatrixDescriptor(descriptor, 0), mn_major, size, depth(i), type,
                 [&](uint32_t address, int mn, int) { begin_read(first, op, address, warps(mn)); });
  };
  if (from_registers) {
    for (int v = 0; v < kGroupWarps; ++v) {
      for (int r = 0; r < 4; ++r) std::memcpy(op.fragments[v][r], b.warps[first.index + v].registers + rest[r], 128);
    }
  } else {
    op.a = same_in_all(first, rest[0], "descriptors of A");
    read(op.a, i.imm[4] & kTransposeA, kRows, i.imm[1], [](int row) { return 1u << row / 16; });
  }
  read(op.b, i.imm[4] & kTransposeB, i.imm[0], i.imm[2], [](int) { return (1u << kGroupWarps) - 1; });
  count_registers(first, op, 1);
  g.under_way.push_back(std::move(op));
}

void fence(Warp& first, const Inst&, uint32_t) {
  for (int v = 0; v < kGroupWarps; ++v) {
    RegisterUse& use = first.block->warps[first.index + v].use;
    use.fenced = true;
    std::fill(use.touched.begin(), use.touched.end(), 0);
    std::fill(use.shape.begin(), use.shape.end(), 0);
  }
}

void commit(Warp& first, const Inst&, uint32_t) { ++warpgroup_of(first).committed; }

// imm: [0] how many of the latest groups may stay under way.
void wait(Warp& first, const Inst& i, uint32_t) {
  const uint32_t committed = warpgroup_of(first).committed, left = i.imm[0];
  if (left < committed) land(first, committed - left);
}

const bool registered = [] {
  add("wgmma.mma", issue, Kind::warpgroup), add("wgmma.fence", fence, Kind::warpgroup);
  add("wgmma.commit_group", commit, Kind::warpgroup), add("wgmma.wait_group", wait, Kind::warpgroup);
  return true;
}();

}  // namespace

void land(Warp& first, uint32_t groups) {
  std::vector<Wgmma>& ops = warpgroup_of(first).under_way;
  size_t landed = 0;
  for (; landed < ops.size() && ops[landed].group < groups; ++landed) {
    multiply(first, ops[landed]);
    end_reads(first, ops[landed]);
    count_registers(first, ops[landed], -1);
  }
  ops.erase(ops.begin(), ops.begin() + landed);
}

}  // namespace emu
