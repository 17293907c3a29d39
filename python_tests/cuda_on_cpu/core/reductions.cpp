#include "reductions.h"

#include <algorithm>

#include "formats.h"

namespace emu {
namespace {

template <class T>
T combine(T a, T b, int reduction) {
  if (reduction == kReduceAdd) return a + b;
  return reduction == kReduceMin ? std::min(a, b) : std::max(a, b);
}

template <class T>
T combine_integers(T a, T b, int reduction) {
  using Bits = std::make_unsigned_t<T>;
  switch (reduction) {
    case kReduceAdd:
      return static_cast<T>(static_cast<Bits>(a) + static_cast<Bits>(b));
    case kReduceAnd:
      return a & b;
    case kReduceOr:
      return a | b;
    case kReduceXor:
      return a ^ b;
    default:
      return combine(a, b, reduction);
  }
}

template <class T, class F>
void each(uint8_t* to, const uint8_t* from, uint32_t bytes, F function) {
  for (uint32_t at = 0; at + sizeof(T) <= bytes; at += sizeof(T)) {
    T a, b;
    std::memcpy(&a, to + at, sizeof(T)), std::memcpy(&b, from + at, sizeof(T));
    a = function(a, b);
    std::memcpy(to + at, &a, sizeof(T));
  }
}

uint16_t combine16(uint16_t a, uint16_t b, int reduction, int type) {
  const Format& f = type == f16 ? kHalf : kBfloat;
  const auto value = [&] { return combine(decode(a, type), decode(b, type), reduction); };
  return encode16(f, round_to(f, reduction == kReduceAdd ? to_odd(value) : value(), kNearest));
}

}  // namespace

void reduce(uint8_t* to, const uint8_t* from, uint32_t bytes, int reduction, int type) {
  const auto integers = [&](auto zero) {
    each<decltype(zero)>(to, from, bytes, [&](auto a, auto b) { return combine_integers(a, b, reduction); });
  };
  const auto floats = [&](auto zero) {
    each<decltype(zero)>(to, from, bytes, [&](auto a, auto b) { return combine(a, b, reduction); });
  };
  switch (type) {
    case u32:
      return integers(uint32_t{});
    case s32:
      return integers(int32_t{});
    case u64:
      return integers(uint64_t{});
    case s64:
      return integers(int64_t{});
    case f32:
      return floats(float{});
    case f64:
      return floats(double{});
    default:
      each<uint16_t>(to, from, bytes, [&](uint16_t a, uint16_t b) { return combine16(a, b, reduction, type); });
  }
}

}  // namespace emu
