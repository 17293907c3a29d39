// What has happened before what: clocks of warps, and what a fence lets others know.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace emu {

// Of warps of the whole launch, numbered from 1: up to which of its clocks each has been seen. Sorted by warp.
class Clocks {
 public:
  uint32_t of(uint32_t warp) const {
    const auto at = find(warp);
    return at != seen_.end() && at->first == warp ? at->second : 0;
  }
  void raise(uint32_t warp, uint32_t clock) {
    const auto at = seen_.begin() + (find(warp) - seen_.begin());
    if (at != seen_.end() && at->first == warp) {
      at->second = std::max(at->second, clock);
    } else {
      seen_.insert(at, {warp, clock});
    }
  }
  void join(const Clocks& other) {
    if (other.seen_.empty()) return;
    std::vector<Seen> both;
    both.reserve(seen_.size() + other.seen_.size());
    auto a = seen_.cbegin(), b = other.seen_.cbegin();
    while (a != seen_.cend() || b != other.seen_.end()) {
      const bool from_a = b == other.seen_.end() || (a != seen_.cend() && a->first <= b->first);
      const bool from_both = from_a && b != other.seen_.end() && a->first == b->first;
      both.push_back(from_a ? *a : *b);
      if (from_both) both.back().second = std::max(a->second, b->second);
      if (from_both || !from_a) ++b;
      if (from_a) ++a;
    }
    seen_.swap(both);
  }
  const auto& seen() const { return seen_; }

 private:
  using Seen = std::pair<uint32_t, uint32_t>;
  std::vector<Seen>::const_iterator find(uint32_t warp) const {
    return std::lower_bound(seen_.begin(), seen_.end(), warp, [](const Seen& s, uint32_t w) { return s.first < w; });
  }
  std::vector<Seen> seen_;
};

using Snapshot = std::shared_ptr<const Clocks>;

inline void join(Snapshot& to, const Snapshot& from) {
  if (to == from || !from) return;
  if (!to) {
    to = from;
    return;
  }
  auto both = std::make_shared<Clocks>(*to);
  both->join(*from);
  to = both;
}

// To whom something is known: to the warps of one block, or to all.
enum Reach { kBlock, kDevice, kReaches };

// A warp's part in it besides its block's clocks. Barriers pass all of it on, so that one thread may fence, or look at
// a flag, for the others of its block.
struct Order {
  Clocks others;                         // what has happened before, of other blocks' warps
  Snapshot fenced[kReaches];             // what a relaxed write makes known: what lay before a fence
  std::vector<Snapshot> seen[kReaches];  // by relaxed reads: it has happened before, once there is a fence

  void see(Reach reach, const Snapshot& snapshot) {
    auto& list = seen[reach];
    if (!snapshot || std::find(list.begin(), list.end(), snapshot) != list.end()) return;
    list.push_back(snapshot);
    constexpr size_t kMany = 64;
    if (list.size() < kMany) return;
    Snapshot all;
    for (const Snapshot& one : list) emu::join(all, one);
    list.assign(1, all);
  }
  void join(const Order& other) {
    others.join(other.others);
    for (const Reach reach : {kBlock, kDevice}) {
      emu::join(fenced[reach], other.fenced[reach]);
      for (const Snapshot& one : other.seen[reach]) see(reach, one);
    }
  }
};

// What a location tells those who read it.
struct Release {
  uint32_t block = 0;            // the last to write
  Snapshot known[kReaches];      // to its own block's warps, to others
  uint32_t warp = 0;             // and between lanes of this warp:
  std::vector<uint32_t> epochs;  // what the writing lane knew of each
  // Of the block's cluster, whoever looks: which copies have landed, and whose writes the async proxy sees.
  std::vector<uint32_t> clock, fenced;
};

}  // namespace emu
