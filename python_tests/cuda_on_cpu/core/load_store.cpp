// ld, st, atom, red, cvta and the address windows.
#include <algorithm>

#include "formats.h"
#include "lanes.h"

namespace emu {
namespace {

// imm of ld and st: [0] space, [1] bytes of an element, [2] elements, [3] offset, [4] bit 0: the address register has
// 64 bits, bit 1: sign-extend, bit 2: the value registers have 64 bits though elements are narrower, bit 3: volatile
// or stronger, bit 4: acquire, bit 5: release, bit 6: for one block only.
Use use_of(const Inst& i, bool write, bool atomic) {
  const int64_t flags = i.imm[4];
  Use use{.write = write, .strong = atomic || (flags & 8), .atomic = atomic};
  use.acquire = flags & 16, use.release = flags & 32, use.wide = !(flags & 64);
  return use;
}

uint64_t address_of(const Warp& w, const Inst& i, int32_t reg, int lane) {
  const uint64_t base = i.imm[4] & 1 ? get<uint64_t>(w, reg, lane) : get<uint32_t>(w, reg, lane);
  return base + i.imm[3];
}

void put_element(Warp& w, const Inst& i, int32_t reg, int lane, const uint8_t* from) {
  const int bytes = i.imm[1];
  uint64_t value = 0;
  std::memcpy(&value, from, bytes);
  const int shift = 64 - 8 * bytes;
  if (i.imm[4] & 2) value = static_cast<uint64_t>(static_cast<int64_t>(value << shift) >> shift);
  if (bytes == 8 || (i.imm[4] & 4)) {
    set<uint64_t>(w, reg, lane, value);
  } else {
    set<uint32_t>(w, reg, lane, value);
  }
}

struct Addresses {
  uint64_t of[kLanes] = {};

  Addresses(const Warp& w, const Inst& i, int32_t reg, uint32_t mask) {
    for (uint32_t rest = mask; rest; rest &= rest - 1)
      of[__builtin_ctz(rest)] = address_of(w, i, reg, __builtin_ctz(rest));
  }
};

// A loop that looks at the same place again lets others go on, who may be about to change it.
void note_poll(Warp& w, const Inst& i) {
  if (w.polled == &i) w.yields = true;
  w.polled = &i;
}

// Operands: address, then the values.
void load(Warp& w, const Inst& i, uint32_t mask, const Addresses& addresses) {
  const int32_t* o = operands(w, i);
  const int bytes = i.imm[1], count = i.imm[2];
  const Use use = use_of(i, false, false);
  if (use.strong) note_poll(w, i);
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    const uint8_t* from = access(w, lane, static_cast<Space>(i.imm[0]), addresses.of[lane], bytes * count, use);
    uint8_t copy[64];
    std::memcpy(copy, from, bytes * count);
    for (int e = 0; e < count; ++e) {
      if (o[1 + e] >= 0) put_element(w, i, o[1 + e], lane, copy + e * bytes);
    }
  }
}

void ld(Warp& w, const Inst& i, uint32_t mask) { load(w, i, mask, Addresses(w, i, operands(w, i)[0], mask)); }

void ld_counted(Warp& w, const Inst& i, uint32_t mask) {
  const Addresses addresses(w, i, operands(w, i)[0], mask);
  count_access(w, static_cast<Space>(i.imm[0]), addresses.of, mask, i.imm[1] * i.imm[2], false);
  load(w, i, mask, addresses);
}

void st(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  const int bytes = i.imm[1], count = i.imm[2];
  const Addresses addresses(w, i, o[0], mask);
  count_access(w, static_cast<Space>(i.imm[0]), addresses.of, mask, bytes * count, true);
  uint8_t data[64];
  Use use = use_of(i, true, false);
  use.data = data;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    for (int e = 0; e < count; ++e) {
      const bool wide = bytes == 8 || (i.imm[4] & 4);
      const uint64_t value = wide ? get<uint64_t>(w, o[1 + e], lane) : get<uint32_t>(w, o[1 + e], lane);
      std::memcpy(data + e * bytes, &value, bytes);
    }
    uint8_t* to = access(w, lane, static_cast<Space>(i.imm[0]), addresses.of[lane], bytes * count, use);
    std::memcpy(to, data, bytes * count);
  }
}

enum AtomicOp { kAdd, kMin, kMax, kExch, kCas, kAnd, kOr, kXor, kInc, kDec };

template <class T>
T integer_function(int op, T old, T b, T c) {
  switch (op) {
    case kAdd:
      return old + b;
    case kMin:
      return std::min(old, b);
    case kMax:
      return std::max(old, b);
    case kExch:
      return b;
    case kCas:
      return old == b ? c : old;
    case kAnd:
      return old & b;
    case kOr:
      return old | b;
    case kXor:
      return old ^ b;
    case kInc:
      return old >= b ? 0 : old + 1;
    default:
      return old == 0 || old > b ? b : old - 1;
  }
}

template <class T>
T float_function(int op, T old, T b, T) {
  return op == kAdd ? old + b : b;  // or exch: the rule lets nothing else through
}

uint32_t pair_add(uint32_t a, uint32_t b, bool half) {
  const auto one = [&](uint16_t x, uint16_t y) -> uint32_t {
    const long double sum = half
                                ? static_cast<long double>(decode_half(x)) + decode_half(y)
                                : to_odd([&] { return static_cast<long double>(decode_bfloat(x)) + decode_bfloat(y); });
    const Format& f = half ? kHalf : kBfloat;
    return encode16(f, round_to(f, sum, kNearest));
  };
  return one(a, b) | one(a >> 16, b >> 16) << 16;
}

// Operands: the old value or -1, address, b, and c of cas. imm: as ld's, [5] the operation.
template <class T, auto kFunction>
void atom(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  const Space space = static_cast<Space>(i.imm[0]);
  const Use use = use_of(i, true, true);
  ++w.block->machine->counts.atomics;
  note_poll(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const uint64_t address = address_of(w, i, o[1], lane);
    uint8_t* at = access(w, lane, space, address, sizeof(T), use);
    T old;
    std::memcpy(&old, at, sizeof(T));
    const T value = kFunction(i.imm[5], old, get<T>(w, o[2], lane), i.count > 3 ? get<T>(w, o[3], lane) : T{});
    std::memcpy(at, &value, sizeof(T));
    if (o[0] >= 0) set<T>(w, o[0], lane, old);
  }
}

// Of 128 bits, exch and cas: a register is two of 64, the lower first. Operands and imm: as atom's.
void atom_b128(Warp& w, const Inst& i, uint32_t mask) {
  struct Wide {
    uint64_t half[2];
  };
  constexpr int kUpper = 8 * kLanes;
  const int32_t* o = operands(w, i);
  const auto wide = [&](int32_t reg, int lane) {
    return Wide{{get<uint64_t>(w, reg, lane), get<uint64_t>(w, reg + kUpper, lane)}};
  };
  ++w.block->machine->counts.atomics;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const uint64_t address = address_of(w, i, o[1], lane);
    access(w, lane, static_cast<Space>(i.imm[0]), address, 16, {.write = false, .strong = true});
    uint8_t* at = access(w, lane, static_cast<Space>(i.imm[0]), address, 16, {.write = true, .strong = true});
    const Wide given = wide(o[2], lane), other = i.imm[5] == kCas ? wide(o[3], lane) : given;
    Wide old;
    std::memcpy(&old, at, 16);
    if (i.imm[5] != kCas || std::memcmp(&old, &given, 16) == 0) std::memcpy(at, &other, 16);
    if (o[0] >= 0) set<uint64_t>(w, o[0], lane, old.half[0]), set<uint64_t>(w, o[0] + kUpper, lane, old.half[1]);
  }
}

uint32_t half_pair(int, uint32_t old, uint32_t b, uint32_t) { return pair_add(old, b, true); }
uint32_t bfloat_pair(int, uint32_t old, uint32_t b, uint32_t) { return pair_add(old, b, false); }
uint16_t half_one(int, uint16_t old, uint16_t b, uint16_t) { return pair_add(old, b, true) & 0xffff; }
uint16_t bfloat_one(int, uint16_t old, uint16_t b, uint16_t) { return pair_add(old, b, false) & 0xffff; }

// Before a vector of atomics, each of which is one of its own. imm: as ld's.
void check_vector(Warp& w, const Inst& i, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint64_t address = has(mask, lane) ? address_of(w, i, operands(w, i)[0], lane) : 0;
    if (address % (i.imm[1] * i.imm[2]) == 0) continue;
    fault(kMisaligned, lane, "a vector of %lld bytes at 0x%llx is not aligned to its size",
          static_cast<long long>(i.imm[1] * i.imm[2]), static_cast<unsigned long long>(address));
  }
}

// imm: [0] what is added to make a window's address generic, or taken away.
void cvta(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (has(mask, lane)) set<uint64_t>(w, o[0], lane, get<uint64_t>(w, o[1], lane) + i.imm[0]);
  }
}

// isspacep: imm[0] the window, 0 for global.
void isspacep(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const uint64_t a = get<uint64_t>(w, o[1], lane), window = i.imm[0];
    const bool is = window ? a >= window && a < window + kWindowSize : a < kSharedWindow;
    set_predicate(w, o[0], 1u << lane, is ? ~0u : 0);
  }
}

const bool registered = [] {
  add("ld", ld_counted), add("ld.param", ld), add("st", st);
  add("atom.u32", atom<uint32_t, integer_function<uint32_t>>);
  add("atom.s32", atom<int32_t, integer_function<int32_t>>);
  add("atom.u64", atom<uint64_t, integer_function<uint64_t>>);
  add("atom.s64", atom<int64_t, integer_function<int64_t>>);
  add("atom.u16", atom<uint16_t, integer_function<uint16_t>>);
  add("atom.f32", atom<float, float_function<float>>);
  add("atom.f64", atom<double, float_function<double>>);
  add("atom.f16x2", atom<uint32_t, half_pair>), add("atom.bf16x2", atom<uint32_t, bfloat_pair>);
  add("atom.f16", atom<uint16_t, half_one>), add("atom.bf16", atom<uint16_t, bfloat_one>);
  add("atom.b128", atom_b128);
  add("cvta", cvta), add("isspacep", isspacep), add("check.vector", check_vector);
  add("nop", [](Warp&, const Inst&, uint32_t) {});
  return true;
}();

}  // namespace
}  // namespace emu
