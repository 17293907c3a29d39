// What device code prints, and its failed assertions: vprintf and __assertfail, as nvcc calls them.
#include <cstdio>

#include "machine.h"

namespace emu {
namespace {

constexpr char kSeparator = '\x1e';  // ends a printed text
std::string printed;

template <class T>
T fetch(Warp& w, int lane, Space space, uint64_t address) {
  T value;
  std::memcpy(&value, access(w, lane, space, address, sizeof(T), {}), sizeof(T));
  return value;
}

std::string text_at(Warp& w, int lane, uint64_t address) {
  std::string out;
  while (const char c = fetch<char>(w, lane, Space::generic, address + out.size())) out += c;
  return out;
}

// The arguments lie one behind another, each aligned to its size; floats have become doubles.
class Arguments {
 public:
  Arguments(Warp& w, int lane, uint64_t address) : w_(w), lane_(lane), at_(address) {}

  template <class T>
  T next() {
    at_ = (at_ + sizeof(T) - 1) / sizeof(T) * sizeof(T);
    at_ += sizeof(T);
    ++count_;
    return fetch<T>(w_, lane_, Space::generic, at_ - sizeof(T));
  }

  int count() const { return count_; }

 private:
  Warp& w_;
  int lane_;
  uint64_t at_;
  int count_ = 0;
};

std::string one(Warp& w, int lane, Arguments& arguments, const std::string& spec) {
  char out[512];
  const auto print = [&](auto value) { snprintf(out, sizeof(out), spec.c_str(), value); };
  const bool wide = spec.find('l') != std::string::npos;
  switch (spec.back()) {
    case '%':
      return "%";
    case 'd':
    case 'i':
      wide ? print(arguments.next<long long>()) : print(arguments.next<int>());
      break;
    case 'u':
    case 'x':
    case 'X':
    case 'o':
      wide ? print(arguments.next<unsigned long long>()) : print(arguments.next<unsigned>());
      break;
    case 'c':
      print(arguments.next<int>());
      break;
    case 'p':
      snprintf(out, sizeof(out), "0x%llx", arguments.next<unsigned long long>());
      break;
    case 's': {
      const std::string text = text_at(w, lane, arguments.next<uint64_t>());
      print(text.c_str());
      break;
    }
    case 'f':
    case 'F':
    case 'e':
    case 'E':
    case 'g':
    case 'G':
    case 'a':
    case 'A':
      print(arguments.next<double>());
      break;
    default:
      fault(kUnsupported, lane, "printf of %s", spec.c_str());
  }
  return out;
}

int format(Warp& w, int lane, const std::string& pattern, Arguments arguments) {
  for (size_t at = 0; at < pattern.size();) {
    if (pattern[at] != '%') {
      printed += pattern[at++];
      continue;
    }
    const size_t end = pattern.find_first_not_of("0123456789.+-# lh", at + 1);
    if (end == std::string::npos) fault(kInvalid, lane, "printf: a conversion without its end");
    printed += one(w, lane, arguments, pattern.substr(at, end + 1 - at));
    at = end + 1;
  }
  printed += kSeparator;
  return arguments.count();
}

// imm: [0] where the pointer to the format is, [1] where that to the arguments is, [2] where the count goes, or -1;
// all in local memory.
void vprintf_call(Warp& w, const Inst& i, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const std::string pattern = text_at(w, lane, fetch<uint64_t>(w, lane, Space::local, i.imm[0]));
    const Arguments arguments(w, lane, fetch<uint64_t>(w, lane, Space::local, i.imm[1]));
    const int count = format(w, lane, pattern, arguments);
    if (i.imm[2] < 0) continue;
    std::memcpy(access(w, lane, Space::local, i.imm[2], 4, {.write = true}), &count, 4);
  }
}

// imm: where the message, the file, the line and the function are.
void assert_fail(Warp& w, const Inst& i, uint32_t mask) {
  const int lane = __builtin_ctz(mask);
  const auto text = [&](int k) { return text_at(w, lane, fetch<uint64_t>(w, lane, Space::local, i.imm[k])); };
  const uint32_t line = fetch<uint32_t>(w, lane, Space::local, i.imm[2]);
  fault(kTrap, lane, "%s:%u: %s: assertion `%s' failed", text(1).c_str(), line, text(3).c_str(), text(0).c_str());
}

const bool registered = [] {
  add("vprintf", vprintf_call), add("__assertfail", assert_fail);
  return true;
}();

}  // namespace

extern "C" {

// What has been printed since the last call, each text ended by the separator.
const char* emu_take_output() {
  static std::string taken;
  taken.swap(printed);
  printed.clear();
  return taken.c_str();
}

}  // extern "C"
}  // namespace emu
