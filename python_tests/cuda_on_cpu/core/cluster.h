// A cluster: blocks that are resident together, see each other's shared memory and wait for each other. A launch
// without clusters has clusters of one block.
#pragma once

#include <array>

#include "machine.h"

namespace emu {

// A shared::cluster address is the offset in a block's shared memory with its rank plus one above; without it, the
// offset is in the own block, as a shared::cta address is.
constexpr int kRankShift = 24;
constexpr uint32_t kClusterBarrier = ~0u;  // in Warp::wait_for

// What a release publishes and an acquire takes over.
struct Published {
  // Up to which of their clocks the warps of a cluster (and behind them the mbarriers, for the copies that they count)
  // are known, and whose writes the async proxy sees.
  std::vector<uint32_t> clock, fenced;
  std::map<int, std::array<uint32_t, kLanes>> lanes;  // by warp: up to which of their epochs its lanes are known
  Order order;
};

// The manual's object, without its bits.
struct Mbarrier {
  Block* block;
  uint32_t address;
  uint32_t expected, pending;  // arrivals
  int64_t bytes = 0;           // tx-count
  uint32_t phase = 0;
  int place;  // in clocks, for the copies that it counts
  Published arriving, completed;
  Touch init;
  int init_warp;
};

// A stretch of a copy. global 0: zeros.
struct Piece {
  uint32_t shared, bytes;
  uint64_t global;
};

// A copy to shared memory that has not landed.
struct Transfer {
  Warp* warp;
  int lane;
  int inst;
  std::vector<Piece> pieces;
  std::vector<uint8_t> data;              // read when the copy began; empty: read from global memory when it lands
  std::vector<Mbarrier*> targets;         // one per block that the copy goes to
  uint32_t source = 0, source_bytes = 0;  // in the shared memory of the issuing block, busy until it lands
  uint32_t total = 0;                     // bytes to report
  int cp_asyncs = -1;                     // not a copy: an arrival, when the lane's first so many cp.async are there
  int age = 0;
};

// A bulk copy from shared to global memory, whose bytes appear when they have been waited for, or later.
struct Store {
  Warp* warp;
  int lane;
  int inst;
  uint32_t group;
  std::vector<Piece> pieces;
  std::vector<uint8_t> data;
  int reduction = -1;  // Reduction
  int type = 0;
  bool read = false;  // waited for, as far as the source goes
};

struct Cluster {
  Machine* machine;
  uint64_t index = 0;       // in the grid
  int number_of_warps = 0;  // of all blocks
  std::vector<std::unique_ptr<Block>> blocks;
  std::unordered_map<uint64_t, Release> releases;  // by the address of a strong access to shared memory
  std::map<uint64_t, Mbarrier> mbarriers;          // by shared_key
  std::map<uint64_t, int> places;                  // theirs in clocks, kept when they are gone
  std::vector<uint32_t> landings;                  // clocks of those places
  std::vector<Transfer> transfers;
  std::vector<Store> stores;
  Published arriving, completed;  // at the cluster's barrier
  int expiries = 0;               // waits that reached their time limit since anything happened

  int warps() const { return number_of_warps; }
};

void join(std::vector<uint32_t>& into, const std::vector<uint32_t>& other);
bool ordered(const Warp& w, int lane, const Touch& before, int warp);
void release(Warp& w, uint32_t lanes, Published& to);
void acquire(Warp& w, uint32_t lanes, const Published& from);
// Relaxed: with a fence before, or after.
void release_relaxed(const Warp& w, Published& to);
void acquire_relaxed(Warp& w, const Published& from);
void fence_arrivals(Warp& w, uint32_t lanes);
void join(Published& into, const Published& other);
// These lanes know of the landings that a clock tells of.
void see(Warp& w, uint32_t lanes, const std::vector<uint32_t>& clock);

// Notes that a warp, or a copy, of another block has used this one's shared memory.
void note_far(Block& b, int who, uint32_t clock);

inline uint64_t shared_key(const Block& b, uint32_t address) {
  return static_cast<uint64_t>(b.rank + 1) << 32 | address;
}

// The block whose shared memory a shared::cluster address is in; the address becomes an offset there.
Block& block_of(Warp& w, int lane, uint64_t& address);
// The same for an address in `space`, which must be one of shared memory.
Block& shared_block(Warp& w, int lane, Space space, uint64_t& address);

// blocks.cpp: the `index`-th cluster of the grid, ready to run.
std::unique_ptr<Cluster> make_cluster(Machine& m, uint64_t index);

// clusters.cpp
// Threads that have exited count as arrived at the cluster's barrier.
void lanes_left(Warp& w, uint32_t lanes);
// What a block must not leave undone; called when its last thread has exited.
void check_exit(Block& b);

// hang.cpp
[[noreturn]] void stuck(Cluster& c);
bool expire(Cluster& c);

}  // namespace emu
