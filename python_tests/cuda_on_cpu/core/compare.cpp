// setp and set.
#include <type_traits>

#include "formats.h"
#include "lanes.h"

namespace emu {
namespace {

float flush(float x) { return x != 0 && std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

enum Compare { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan_ };

template <class T>
bool compare(int c, T a, T b) {
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

template <class T>
T value_of(const Warp& w, int32_t offset, int lane, bool ftz) {
  T x = get<T>(w, offset, lane);
  if constexpr (std::is_same_v<T, float>) {
    if (ftz) x = flush(x);
  }
  return x;
}

struct HalfValue {
  uint16_t bits;
};
struct BfloatValue {
  uint16_t bits;
};

template <class T>
auto comparable(T x) {
  if constexpr (std::is_same_v<T, HalfValue>)
    return decode_half(x.bits);
  else if constexpr (std::is_same_v<T, BfloatValue>)
    return decode_bfloat(x.bits);
  else
    return x;
}

// p|q = compare(a, b) combined with c. imm: [0] comparison, [1] none, and, or, xor, [2] c negated, [3] ftz.
// Operands: p, q or -1, a, b, c.
template <class T>
void setp(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  uint32_t result = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const T a = value_of<T>(w, o[2], lane, i.imm[3]), b = value_of<T>(w, o[3], lane, i.imm[3]);
    result |= static_cast<uint32_t>(compare(i.imm[0], comparable(a), comparable(b))) << lane;
  }
  uint32_t inverse = ~result;
  if (i.imm[1]) {
    const uint32_t c = predicate(w, o[4]) ^ (i.imm[2] ? ~0u : 0);
    const auto combine = [&](uint32_t x) { return i.imm[1] == 1 ? x & c : i.imm[1] == 2 ? x | c : x ^ c; };
    result = combine(result), inverse = combine(inverse);
  }
  const auto put = [&](int32_t offset, uint32_t value) {
    if (offset >= 0) predicate(w, offset) = (predicate(w, offset) & ~mask) | (value & mask);
  };
  put(o[0], result), put(o[1], inverse);
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
      result |= static_cast<uint32_t>(compare(i.imm[0], comparable(a), comparable(b))) << lane;
    }
    if (o[half] >= 0) predicate(w, o[half]) = (predicate(w, o[half]) & ~mask) | (result & mask);
  }
}

// set: like setp, to a register of ones or zeros (1.0 in f32). imm as setp's, [4] the result is f32.
template <class T>
void set_value(Warp& w, const Inst& i, uint32_t mask) {
  const int32_t* o = operands(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const T a = value_of<T>(w, o[1], lane, i.imm[3]), b = value_of<T>(w, o[2], lane, i.imm[3]);
    const bool is = compare(i.imm[0], comparable(a), comparable(b));
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
