// setp and set.
#include <type_traits>

#include "formats.h"
#include "lanes.h"

namespace emu {
namespace {

enum Compare { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan_ };

template <class T>
inline bool compare(int c, T a, T b) {
  const bool unordered = a != a || b != b;
  switch (c) {
    case eq:
      return a == b;
    case ne:
      return !unordered && a != b;
    case lt:
      return a < b;
    case le:
      return a <= b;
    case gt:
      return a > b;
    case ge:
      return a >= b;
    case equ:
      return unordered || a == b;
    case neu:
      return a != b;
    case ltu:
      return unordered || a < b;
    case leu:
      return unordered || a <= b;
    case gtu:
      return unordered || a > b;
    case geu:
      return unordered || a >= b;
    case num:
      return !unordered;
    default:
      return unordered;
  }
}

// What is compared: an integer as it is, a float flushed if asked.
template <class T>
T operand(T x, bool ftz) {
  if constexpr (std::is_same_v<T, float>) return ftz ? flush(x) : x;
  return x;
}

struct HalfValue {
  uint16_t bits;
};
struct BfloatValue {
  uint16_t bits;
};

float operand(HalfValue x, bool ftz) { return decode_half(ftz ? flush16(kHalf, x.bits) : x.bits); }
float operand(BfloatValue x, bool ftz) { return decode_bfloat(ftz ? flush16(kBfloat, x.bits) : x.bits); }

template <class T>
bool holds(const Inst& i, T a, T b) {
  return compare(i.imm[0], operand(a, i.imm[3]), operand(b, i.imm[3]));
}

template <class T, class F>
uint32_t where(const Warp& w, const int32_t* o, F f) {
  const Row<T> a(w, o[0]), b(w, o[1]);
  uint8_t flags[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) flags[lane] = f(a.lane[lane], b.lane[lane]);
  return mask_of(flags);
}

// The lanes where it holds. What compilers emit most has a loop of its own, with no choice in it.
template <class T>
uint32_t holding(const Warp& w, const Inst& i, const int32_t* o) {
  if constexpr (std::is_arithmetic_v<T>) {
    if (!i.imm[3]) {
      switch (i.imm[0]) {
        case eq:
          return where<T>(w, o, [](T a, T b) { return a == b; });
        case lt:
          return where<T>(w, o, [](T a, T b) { return a < b; });
        case le:
          return where<T>(w, o, [](T a, T b) { return a <= b; });
        case gt:
          return where<T>(w, o, [](T a, T b) { return a > b; });
        case ge:
          return where<T>(w, o, [](T a, T b) { return a >= b; });
      }
    }
  }
  return where<T>(w, o, [&i](T a, T b) { return holds(i, a, b); });
}

// p|q = compare(a, b) combined with c. imm: [0] comparison, [1] none, and, or, xor, [2] c negated, [3] ftz.
// Operands: p, q or -1, a, b, c.
template <class T>
void setp(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  uint32_t result = holding<T>(w, i, o + 2);
  uint32_t inverse = ~result;
  if (i.imm[1]) {
    const uint32_t c = predicate(w, o[4]) ^ (i.imm[2] ? ~0u : 0);
    const auto combine = [&](uint32_t x) { return i.imm[1] == 1 ? x & c : i.imm[1] == 2 ? x | c : x ^ c; };
    result = combine(result), inverse = combine(inverse);
  }
  set_predicate(w, o[0], mask, result);
  set_predicate(w, o[1], mask, inverse);
}

// p for the lower halves, q for the upper ones.
template <class T>
void setp_pair(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int half = 0; half < 2; ++half) {
    uint32_t result = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const T a{static_cast<uint16_t>(get<uint32_t>(w, o[2], lane) >> (16 * half))};
      const T b{static_cast<uint16_t>(get<uint32_t>(w, o[3], lane) >> (16 * half))};
      result |= static_cast<uint32_t>(holds(i, a, b)) << lane;
    }
    set_predicate(w, o[half], mask, result);
  }
}

// set: like setp, to a register of ones or zeros (1.0 in f32). imm as setp's, [4] the result is f32.
template <class T>
void set_value(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const bool is = holds(i, get<T>(w, o[1], lane), get<T>(w, o[2], lane));
    set<uint32_t>(w, o[0], lane, !is ? 0 : i.imm[4] ? 0x3f800000u : ~0u);
  }
}

template <class T>
void comparisons(const std::string& t) {
  add("setp." + t, setp<T>);
  add("set." + t, set_value<T>);
}

const bool registered = [] {
  comparisons<uint16_t>("u16"), comparisons<int16_t>("s16"), comparisons<uint32_t>("u32");
  comparisons<int32_t>("s32"), comparisons<uint64_t>("u64"), comparisons<int64_t>("s64");
  comparisons<float>("f32"), comparisons<double>("f64");
  add("setp.f16x2", setp_pair<HalfValue>), add("setp.bf16x2", setp_pair<BfloatValue>);
  comparisons<HalfValue>("f16"), comparisons<BfloatValue>("bf16");
  return true;
}();

}  // namespace
}  // namespace emu
