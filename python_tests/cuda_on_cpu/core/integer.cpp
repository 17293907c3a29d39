// Integer arithmetic.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "lanes.h"

namespace emu {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T>
using Wide = std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                                std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;

template <class T>
T mul_lo(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}

template <class T>
T mul_hi(T a, T b) {
  using Double = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return static_cast<T>(static_cast<Double>(a) * static_cast<Double>(b) >> (8 * sizeof(T)));
}

int32_t saturate(int64_t x) { return static_cast<int32_t>(std::clamp<int64_t>(x, INT32_MIN, INT32_MAX)); }

template <class T>
T divide(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(0 - static_cast<Unsigned<T>>(a));
  return a / b;
}

template <class T>
T remainder(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return a % b;
}

template <class T>
T shift_right(T a, uint32_t n) {
  constexpr uint32_t bits = 8 * sizeof(T);
  if (n >= bits) return std::is_signed_v<T> && a < 0 ? static_cast<T>(-1) : 0;
  return static_cast<T>(a >> n);
}

template <class T>
T extract(T a, uint32_t position, uint32_t length) {
  constexpr uint32_t bits = 8 * sizeof(T);
  position &= 255, length &= 255;
  const auto bit = [&](uint32_t i) { return static_cast<Unsigned<T>>(a) >> std::min(i, bits - 1) & 1; };
  Unsigned<T> out = 0;
  const Unsigned<T> fill = std::is_signed_v<T> && length != 0 ? bit(position + length - 1) : 0;
  for (uint32_t i = 0; i < bits; ++i) {
    const Unsigned<T> value = i < length && position + i < bits ? bit(position + i) : fill;
    out |= value << i;
  }
  return static_cast<T>(out);
}

template <class T>
uint32_t find_top(T a) {
  if (std::is_signed_v<T> && a < 0) a = ~a;
  for (int i = 8 * sizeof(T) - 1; i >= 0; --i) {
    if (static_cast<Unsigned<T>>(a) >> i & 1) return i;
  }
  return ~0u;
}

template <class T>
void arithmetic(const std::string& t) {
  lanes<T, T, T>("add." + t,
                 [](T a, T b) { return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b)); });
  lanes<T, T, T>("sub." + t,
                 [](T a, T b) { return static_cast<T>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b)); });
  lanes<T, T, T>("mul.lo." + t, [](T a, T b) { return mul_lo(a, b); });
  lanes<T, T, T>("mul.hi." + t, [](T a, T b) { return mul_hi(a, b); });
  lanes<T, T, T, T>("mad.lo." + t,
                    [](T a, T b, T c) { return static_cast<T>(static_cast<uint64_t>(mul_lo(a, b)) + c); });
  lanes<T, T, T, T>("mad.hi." + t,
                    [](T a, T b, T c) { return static_cast<T>(static_cast<uint64_t>(mul_hi(a, b)) + c); });
  lanes<T, T, T>("div." + t, [](T a, T b) { return divide(a, b); });
  lanes<T, T, T>("rem." + t, [](T a, T b) { return remainder(a, b); });
  lanes<T, T, T>("min." + t, [](T a, T b) { return std::min(a, b); });
  lanes<T, T, T>("max." + t, [](T a, T b) { return std::max(a, b); });
  lanes<T, T, uint32_t>("shr." + t, [](T a, uint32_t n) { return shift_right(a, n); });
  lanes<T, T, T, T>("sad." + t, [](T a, T b, T c) { return static_cast<T>(c + (a < b ? b - a : a - b)); });
  if constexpr (sizeof(T) < 8) {
    lanes<Wide<T>, T, T>("mul.wide." + t, [](T a, T b) { return static_cast<Wide<T>>(static_cast<Wide<T>>(a) * b); });
    lanes<Wide<T>, T, T, Wide<T>>("mad.wide." + t, [](T a, T b, Wide<T> c) {
      return static_cast<Wide<T>>(static_cast<uint64_t>(static_cast<Wide<T>>(a) * b) + static_cast<uint64_t>(c));
    });
  }
  if constexpr (sizeof(T) >= 4) {
    lanes<T, T, uint32_t, uint32_t>("bfe." + t, [](T a, uint32_t p, uint32_t n) { return extract(a, p, n); });
    lanes<uint32_t, T>("bfind." + t, [](T a) { return find_top(a); });
    lanes<uint32_t, T>("bfind.shiftamt." + t, [](T a) {
      const uint32_t top = find_top(a);
      return top == ~0u ? top : static_cast<uint32_t>(8 * sizeof(T) - 1 - top);
    });
  }
  if constexpr (std::is_signed_v<T>) {
    lanes<T, T>("neg." + t, [](T a) { return static_cast<T>(0 - static_cast<Unsigned<T>>(a)); });
    lanes<T, T>("abs." + t, [](T a) { return static_cast<T>(a < 0 ? 0 - static_cast<Unsigned<T>>(a) : a); });
  }
}

// add.cc, addc, sub.cc, subc: d, a, b, the carry; mad.cc, madc: d, a, b, c, the carry. imm: [0] reads the carry,
// [1] writes it, [2] subtracts, or takes the product's high half.
template <class T, bool kMultiplies>
void carrying(const std::string& name) {
  add(name, [](Warp& w, const Inst& i, uint32_t mask) {
    const int32_t* o = operands(w, i);
    const int32_t carry = o[kMultiplies ? 4 : 3];
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!has(mask, lane)) continue;
      const T a = get<T>(w, o[1], lane), b = get<T>(w, o[2], lane);
      const unsigned in = i.imm[0] && has(predicate(w, carry), lane);
      unsigned __int128 out;
      if constexpr (kMultiplies) {
        out = static_cast<unsigned __int128>(i.imm[2] ? mul_hi(a, b) : mul_lo(a, b)) + get<T>(w, o[3], lane) + in;
      } else {
        const unsigned __int128 wide = a;
        out = i.imm[2] ? wide - b - in : wide + b + in;
      }
      set<T>(w, o[0], lane, static_cast<T>(out));
      if (i.imm[1]) set_predicate(w, carry, 1u << lane, out >> (8 * sizeof(T)) & 1 ? ~0u : 0);
    }
  });
}

uint32_t dot4(const Inst& i, uint32_t a, uint32_t b, uint32_t c) {
  const auto byte = [](uint32_t x, int k, bool is_signed) -> int32_t {
    return is_signed ? static_cast<int8_t>(x >> (8 * k)) : static_cast<int32_t>(x >> (8 * k) & 255);
  };
  for (int k = 0; k < 4; ++k) c += static_cast<uint32_t>(byte(a, k, i.imm[0]) * byte(b, k, i.imm[1]));
  return c;
}

const bool registered = [] {
  arithmetic<uint16_t>("u16"), arithmetic<int16_t>("s16"), arithmetic<uint32_t>("u32");
  arithmetic<int32_t>("s32"), arithmetic<uint64_t>("u64"), arithmetic<int64_t>("s64");
  carrying<uint32_t, false>("carry.u32"), carrying<uint64_t, false>("carry.u64");
  carrying<uint32_t, true>("carry.mad.u32"), carrying<uint64_t, true>("carry.mad.u64");
  lanes<int32_t, int32_t, int32_t>("add.sat.s32", [](int64_t a, int64_t b) { return saturate(a + b); });
  lanes<int32_t, int32_t, int32_t>("sub.sat.s32", [](int64_t a, int64_t b) { return saturate(a - b); });
  lanes_with<uint32_t, uint32_t, uint32_t, uint32_t>(
      "dp4a", [](const Inst& i, uint32_t a, uint32_t b, uint32_t c) { return dot4(i, a, b, c); });
  return true;
}();

}  // namespace
}  // namespace emu
