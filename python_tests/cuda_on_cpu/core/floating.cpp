// Floating-point arithmetic: f32, f64, f16, bf16 and the packed pairs. imm: [0] rounding, [1] ftz, [2] sat, [3] NaN
// wins (min, max), or relu.
#include <algorithm>

#include "formats.h"
#include "lanes.h"

namespace emu {
namespace {

template <class T>
T saturate(T x) {
  return x > 0 ? std::min(x, T{1}) : T{0};  // of NaN and -0: +0
}

template <class T>
T directed(int mode, auto f) {
  static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  fesetround(modes[mode]);
  volatile T out = f();
  fesetround(FE_TONEAREST);
  return out;
}

template <class T, class F, class... A>
T with_modes(const Inst& i, F f, A... a) {
  if (i.imm[1]) ((a = flush(a)), ...);
  const auto rounded = [&](int mode) {
    volatile T in[] = {a...};  // keeps the compiler from computing before the rounding mode is set
    return directed<T>(mode, [&] { return f(in); });
  };
  const T in[] = {a...};
  T out = i.imm[0] == kNearest ? f(in) : rounded(i.imm[0]);
  // Hardware calls a result tiny by its exact value, before rounding.
  constexpr T kNormal = std::numeric_limits<T>::min();
  if (i.imm[1] && std::fabs(out) == kNormal && std::fabs(rounded(kZero)) < kNormal) out = std::copysign(T{0}, out);
  if (i.imm[1]) out = flush(out);
  if (i.imm[2]) out = saturate(out);
  if constexpr (sizeof(T) == 4) out = canonical(out);
  return out;
}

template <class T>
T minimum(T a, T b, bool nan_wins, bool largest) {
  if (std::isnan(a) || std::isnan(b)) {
    if (nan_wins || (std::isnan(a) && std::isnan(b))) return NAN;
    return std::isnan(a) ? b : a;
  }
  if (a == 0 && b == 0) return std::signbit(a) == largest ? b : a;
  return (a < b) != largest ? a : b;
}

template <class T>
void arithmetic(const std::string& t) {
  lanes_with<T, T, T>("add." + t, [](const Inst& i, T a, T b) {
    return with_modes<T>(i, [](const auto* x) -> T { return x[0] + x[1]; }, a, b);
  });
  lanes_with<T, T, T>("sub." + t, [](const Inst& i, T a, T b) {
    return with_modes<T>(i, [](const auto* x) -> T { return x[0] - x[1]; }, a, b);
  });
  lanes_with<T, T, T>("mul." + t, [](const Inst& i, T a, T b) {
    return with_modes<T>(i, [](const auto* x) -> T { return x[0] * x[1]; }, a, b);
  });
  lanes_with<T, T, T, T>("fma." + t, [](const Inst& i, T a, T b, T c) {
    return with_modes<T>(i, [](const auto* x) -> T { return std::fma(T(x[0]), T(x[1]), T(x[2])); }, a, b, c);
  });
  lanes_with<T, T, T>("div." + t, [](const Inst& i, T a, T b) {
    return with_modes<T>(i, [](const auto* x) -> T { return x[0] / x[1]; }, a, b);
  });
  lanes_with<T, T>("sqrt." + t, [](const Inst& i, T a) {
    return with_modes<T>(i, [](const auto* x) -> T { return std::sqrt(T(x[0])); }, a);
  });
  lanes_with<T, T>("rcp." + t, [](const Inst& i, T a) {
    return with_modes<T>(i, [](const auto* x) -> T { return T{1} / x[0]; }, a);
  });
  // Approximations: the result rounded to nearest, which lies within the error PTX allows.
  const auto approximate = [&](const char* name, auto f) {
    using F = decltype(f);
    lanes_with<T, T>(name + t, [](const Inst& i, T a) {
      return with_modes<T>(i, [](const auto* x) -> T { return static_cast<T>(F{}(double(x[0]))); }, a);
    });
  };
  approximate("rsqrt.", [](double x) { return 1 / std::sqrt(x); });
  approximate("ex2.", [](double x) { return std::exp2(x); });
  approximate("lg2.", [](double x) { return std::log2(x); });
  approximate("sin.", [](double x) { return std::sin(x); });
  approximate("cos.", [](double x) { return std::cos(x); });
  approximate("tanh.", [](double x) { return std::tanh(x); });
  lanes_with<T, T>("neg." + t, [](const Inst& i, T a) { return i.imm[1] ? flush(-a) : -a; });
  lanes_with<T, T>("abs." + t, [](const Inst& i, T a) { return std::fabs(i.imm[1] ? flush(a) : a); });
  lanes_with<T, T, T>("min." + t, [](const Inst& i, T a, T b) {
    return i.imm[1] ? minimum(flush(a), flush(b), i.imm[3], false) : minimum(a, b, i.imm[3], false);
  });
  lanes_with<T, T, T>("max." + t, [](const Inst& i, T a, T b) {
    return i.imm[1] ? minimum(flush(a), flush(b), i.imm[3], true) : minimum(a, b, i.imm[3], true);
  });
  lanes<T, T, T>("copysign." + t, [](T a, T b) { return std::copysign(b, a); });
  add("testp." + t, [](Warp& w, const Inst& i, uint32_t mask) {
    const int32_t* o = operands(w, i);
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!has(mask, lane)) continue;
      const T x = get<T>(w, o[1], lane);
      const int c = std::fpclassify(x);
      const bool tests[] = {c != FP_NAN && c != FP_INFINITE,
                            c == FP_INFINITE,
                            c != FP_NAN,
                            c == FP_NAN,
                            c == FP_NORMAL,
                            c == FP_SUBNORMAL};
      set_predicate(w, o[0], 1u << lane, tests[i.imm[0]] ? ~0u : 0);
    }
  });
}

template <bool kIsHalf>
struct Narrow {
  static constexpr Format format = kIsHalf ? kHalf : kBfloat;
  static float decode(uint16_t bits) { return kIsHalf ? decode_half(bits) : decode_bfloat(bits); }

  // Exact sums and products of narrow values may need more than 64 bits: cut to odd, then rounded once.
  static uint16_t round(const Inst& i, long double x) {
    long double out = round_to(format, x, i.imm[0]);
    if (i.imm[2]) out = out > 0 ? std::min(out, 1.0L) : 0;
    if (i.imm[3] && out <= 0) out = 0;  // relu, which makes -0 +0
    return maybe_flush(i, encode16(format, out));
  }
  static uint16_t maybe_flush(const Inst& i, uint16_t bits) { return i.imm[1] ? flush16(format, bits) : bits; }
  static uint16_t add(const Inst& i, uint16_t a, uint16_t b) {
    return round(i, to_odd([&] { return static_cast<long double>(decode(a)) + decode(b); }));
  }
  static uint16_t sub(const Inst& i, uint16_t a, uint16_t b) {
    return round(i, to_odd([&] { return static_cast<long double>(decode(a)) - decode(b); }));
  }
  static uint16_t mul(const Inst& i, uint16_t a, uint16_t b) {
    return round(i, static_cast<long double>(decode(a)) * decode(b));
  }
  static uint16_t fma(const Inst& i, uint16_t a, uint16_t b, uint16_t c) {
    return round(i, to_odd([&] { return static_cast<long double>(decode(a)) * decode(b) + decode(c); }));
  }
  static uint16_t extreme(const Inst& i, uint16_t a, uint16_t b, bool largest) {
    const float x = minimum(decode(a), decode(b), i.imm[3], largest);
    return encode16(format, x);
  }
  static uint16_t min(const Inst& i, uint16_t a, uint16_t b) { return extreme(i, a, b, false); }
  static uint16_t max(const Inst& i, uint16_t a, uint16_t b) { return extreme(i, a, b, true); }
  static uint16_t neg(const Inst&, uint16_t a) { return a ^ 0x8000; }
  static uint16_t abs(const Inst&, uint16_t a) { return a & 0x7fff; }
  static uint16_t ex2(const Inst& i, uint16_t a) { return round(i, exp2l(decode(a))); }
  static uint16_t tanh(const Inst& i, uint16_t a) { return round(i, tanhl(decode(a))); }
};

// The function on one value, and on the two halves of a pair.
template <class N, auto kFunction, class... Pairs>
void narrow(const std::string& name) {
  lanes_with<uint32_t, Pairs...>(name + "x2", [](const Inst& i, Pairs... a) {
    const uint32_t low = kFunction(i, N::maybe_flush(i, a)...), high = kFunction(i, N::maybe_flush(i, a >> 16)...);
    return low | high << 16;
  });
  lanes_with<uint16_t, Pairs...>(
      name, [](const Inst& i, Pairs... a) -> uint16_t { return kFunction(i, N::maybe_flush(i, a)...); });
}

template <bool kIsHalf>
void narrow_arithmetic(const std::string& t) {
  using N = Narrow<kIsHalf>;
  using P = uint32_t;
  narrow<N, N::add, P, P>("add." + t), narrow<N, N::sub, P, P>("sub." + t), narrow<N, N::mul, P, P>("mul." + t);
  narrow<N, N::min, P, P>("min." + t), narrow<N, N::max, P, P>("max." + t), narrow<N, N::fma, P, P, P>("fma." + t);
  narrow<N, N::neg, P>("neg." + t), narrow<N, N::abs, P>("abs." + t);
  narrow<N, N::ex2, P>("ex2." + t), narrow<N, N::tanh, P>("tanh." + t);
}

const bool registered = [] {
  arithmetic<float>("f32"), arithmetic<double>("f64");
  narrow_arithmetic<true>("f16"), narrow_arithmetic<false>("bf16");
  return true;
}();

}  // namespace
}  // namespace emu
