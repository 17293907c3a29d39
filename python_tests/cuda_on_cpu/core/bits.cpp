// Logic, shifts, bit fields, selection, and predicates.
#include <algorithm>
#include <bit>
#include <type_traits>

#include "lanes.h"

namespace emu {
namespace {

template <class T>
uint32_t leading_zeros(T a) {
  return std::countl_zero(a);
}

template <class T>
T shift_left(T a, uint32_t n) {
  return n >= 8 * sizeof(T) ? 0 : static_cast<T>(static_cast<uint64_t>(a) << n);
}

template <class T>
T insert(T a, T b, uint32_t position, uint32_t length) {
  constexpr uint32_t bits = 8 * sizeof(T);
  position &= 255, length &= 255;
  for (uint32_t i = 0; i < length && position + i < bits; ++i) {
    const T one = T{1} << (position + i);
    b = (a >> i & 1) ? b | one : b & ~one;
  }
  return b;
}

uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> (4 * i) & 15;
    uint32_t byte = bytes >> (8 * (pick & 7)) & 255;
    if (pick & 8) byte = byte & 128 ? 255 : 0;
    out |= byte << (8 * i);
  }
  return out;
}

// Modes .f4e, .b4e, .rc8, .ecl, .ecr, .rc16: byte picks by the selector's low two bits.
uint32_t permute_mode(uint32_t a, uint32_t b, uint32_t selector, int mode) {
  static const uint16_t table[6][4] = {{0x3210, 0x4321, 0x5432, 0x6543}, {0x5670, 0x6701, 0x7012, 0x0123},
                                       {0x0000, 0x1111, 0x2222, 0x3333}, {0x3210, 0x3211, 0x3222, 0x3333},
                                       {0x0000, 0x1110, 0x2210, 0x3210}, {0x1010, 0x3232, 0x1010, 0x3232}};
  return permute(a, b, table[mode][selector & 3]);
}

uint32_t logic3(uint32_t a, uint32_t b, uint32_t c, int table) {
  uint32_t out = 0;
  for (int i = 0; i < 8; ++i) {
    if (table >> i & 1) out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return out;
}

template <class T>
void bits(const std::string& t) {
  lanes<T, T, T>("and." + t, [](T a, T b) { return static_cast<T>(a & b); });
  lanes<T, T, T>("or." + t, [](T a, T b) { return static_cast<T>(a | b); });
  lanes<T, T, T>("xor." + t, [](T a, T b) { return static_cast<T>(a ^ b); });
  lanes<T, T>("not." + t, [](T a) { return static_cast<T>(~a); });
  lanes<T, T>("cnot." + t, [](T a) { return static_cast<T>(a == 0); });
  lanes<T, T>("mov." + t, [](T a) { return a; });
  lanes<T, T, uint32_t>("shl." + t, [](T a, uint32_t n) { return shift_left(a, n); });
  add("selp." + t, [](Warp& w, const Inst& i, uint32_t mask) {
    const int32_t* o = operands(w, i);
    const uint32_t p = predicate(w, o[3]) ^ (i.imm[0] ? ~0u : 0);
    const Row<T> a(w, o[1]), b(w, o[2]);
    for (int lane = 0; lane < kLanes; ++lane) {
      if (has(mask, lane)) set<T>(w, o[0], lane, has(p, lane) ? a.lane[lane] : b.lane[lane]);
    }
  });
  lanes<T, T, T, int32_t>("slct.s32." + t, [](T a, T b, int32_t c) { return c >= 0 ? a : b; });
  lanes_with<T, T, T, float>(
      "slct.f32." + t, [](const Inst& i, T a, T b, float c) { return c >= 0 || (i.imm[0] && c > -0x1p-126f) ? a : b; });
  if constexpr (sizeof(T) >= 4) {
    lanes<uint32_t, T>("popc." + t, [](T a) { return static_cast<uint32_t>(__builtin_popcountll(a)); });
    lanes<uint32_t, T>("clz." + t, [](T a) { return leading_zeros(a); });
    lanes<T, T>("brev." + t, [](T a) {
      T out = 0;
      for (size_t i = 0; i < 8 * sizeof(T); ++i) out |= (a >> i & 1) << (8 * sizeof(T) - 1 - i);
      return out;
    });
    lanes<T, T, T, uint32_t, uint32_t>("bfi." + t, [](T a, T b, uint32_t p, uint32_t n) { return insert(a, b, p, n); });
  }
}

void predicates() {
  const auto binary = [](const char* name, auto f) {
    using F = decltype(f);
    add(name, [](Warp& w, const Inst& i, uint32_t mask) {
      const int32_t* o = operands(w, i);
      set_predicate(w, o[0], mask, F{}(predicate(w, o[1]), i.count > 2 ? predicate(w, o[2]) : 0));
    });
  };
  binary("and.pred", [](uint32_t a, uint32_t b) { return a & b; });
  binary("or.pred", [](uint32_t a, uint32_t b) { return a | b; });
  binary("xor.pred", [](uint32_t a, uint32_t b) { return a ^ b; });
  binary("not.pred", [](uint32_t a, uint32_t) { return ~a; });
  binary("mov.pred", [](uint32_t a, uint32_t) { return a; });
}

uint32_t funnel(uint32_t low, uint32_t high, uint32_t n, bool left, bool wrap) {
  n = wrap ? n & 31 : std::min(n, 32u);
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  return left ? static_cast<uint32_t>(both << n >> 32) : static_cast<uint32_t>(n == 32 ? high : both >> n);
}

const bool registered = [] {
  bits<uint16_t>("b16"), bits<uint32_t>("b32"), bits<uint64_t>("b64");
  predicates();
  lanes_with<uint32_t, uint32_t, uint32_t, uint32_t>("prmt", [](const Inst& i, uint32_t a, uint32_t b, uint32_t s) {
    return i.imm[0] < 0 ? permute(a, b, s) : permute_mode(a, b, s, i.imm[0]);
  });
  lanes_with<uint32_t, uint32_t, uint32_t, uint32_t>(
      "lop3", [](const Inst& i, uint32_t a, uint32_t b, uint32_t c) { return logic3(a, b, c, i.imm[0]); });
  lanes_with<uint32_t, uint32_t, uint32_t, uint32_t>(
      "shf", [](const Inst& i, uint32_t a, uint32_t b, uint32_t n) { return funnel(a, b, n, i.imm[0], i.imm[1]); });
  lanes_with<uint32_t, uint32_t, uint32_t>("bmsk", [](const Inst& i, uint32_t a, uint32_t b) -> uint32_t {
    if (i.imm[0]) a &= 31, b &= 31;
    return a > 31 ? 0 : static_cast<uint32_t>(((1ull << std::min(b, 32u)) - 1) << a);
  });
  return true;
}();

}  // namespace
}  // namespace emu
