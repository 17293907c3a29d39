// The state of a launch: blocks, warps, lanes, and what handlers may do with them.
#pragma once

#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "order.h"
#include "program.h"
#include "wgmma.h"

namespace emu {

struct Machine;
struct Block;
struct Cluster;
struct Published;

// Thrown by handlers; launch() turns it into the caller's Fault.
struct FaultError {
  FaultKind kind;
  int lane;
  std::string text;
};

// A waiting lane tries its instruction again when the mbarrier, or the cluster's barrier, has moved on.
enum class Lane : uint8_t { run, at_barrier, at_sync, at_warpgroup, waiting, exited };

// A cp.async that has not landed: nothing reads it before its thread has waited for its group.
struct PendingCopy {
  int lane;
  uint32_t group;
  uint32_t shared;
  uint64_t global;
  uint32_t bytes, source_bytes;
};

struct Warp {
  Block* block;
  int index;
  int number;  // among the warps of the cluster: its place in clocks
  std::vector<uint8_t> storage;
  uint8_t* registers;
  std::vector<uint8_t> local;  // [lane][local_bytes]
  int32_t pc[kLanes];
  Lane state[kLanes];
  int32_t barrier[kLanes];  // the barrier that an at_barrier lane waits at
  uint32_t live;            // lanes that have not exited
  uint32_t sync_epoch = 1;  // counts synchronisations of the whole warp
  uint32_t lane_epoch = 1;
  uint32_t known[kLanes][kLanes];  // [lane][other]: up to which of its epochs the other lane is known; own: the epoch
  std::vector<uint32_t> clock;     // of every warp of the cluster: what has happened before this one's next access
  std::vector<uint32_t> fenced;    // like clock: whose writes of shared memory the async proxy sees
  std::vector<std::array<uint32_t, kLanes>> seen;  // per mbarrier of the cluster: which landings each lane knows of
  uint32_t synced = 0;                             // its own clock when all its lanes last synchronised
  uint32_t proxy_fences[kLanes] = {};
  std::shared_ptr<Published> before_fence;   // what a relaxed arrival after a fence publishes
  std::shared_ptr<Published> after_relaxed;  // what a fence after a relaxed wait takes over
  uint32_t parked = 0;                       // lanes that the instruction makes wait
  uint32_t expired = 0;                      // lanes whose wait has reached its time limit
  uint32_t wait_for[kLanes] = {};            // the mbarrier, or kClusterBarrier
  bool yields = false;                       // others first
  const Inst* polled = nullptr;              // the latest load with an order: again, it spins
  uint32_t bulk_group[kLanes] = {};          // committed groups of bulk copies
  uint32_t cluster_arrived = 0;              // lanes that have arrived at the cluster's barrier
  uint32_t cluster_released = 0;             // lanes that may pass it
  std::vector<PendingCopy> copies;
  uint32_t copy_group[kLanes] = {};
  RegisterUse use;
  int landed[kLanes] = {};  // cp.async that are there
  const Inst* current = nullptr;
  uint32_t active = 0;  // the lanes that run it
  Order order;
  int times_back = 0, turns_for_others = 0;  // see pick.h
  uint32_t waiting = 0;

  int thread(int lane) const { return index * kLanes + lane; }
};

struct Arrival {
  Warp* warp;
  uint32_t lanes;
  const Inst* inst;
  uint32_t predicate;
};

struct Barrier {
  uint32_t arrived = 0;
  uint32_t expected = 0;  // 0: every live thread
  std::vector<uint32_t> clock, fenced;
  Order order;
  std::vector<Arrival> arrivals;
};

// Who touched four bytes of shared memory, which of them, and when.
struct Touch {
  uint32_t clock;  // the warp's own; 0: nobody
  uint32_t sync;   // the warp's epoch
  uint32_t epoch;  // the lane's; the least where there are several
  uint32_t lanes;
  uint8_t bytes;
  bool strong;
};

struct Cell {
  Touch write;
  int32_t warp;      // that wrote, or the mbarrier of the bulk copy that did
  uint32_t readers;  // warps of the block that have read since a write that came after all earlier reads
  uint32_t fences;   // proxy fences of the writing lane until the write
};

// Who touched four bytes of global memory: warps of the launch, numbered from 1; 0: none.
struct GlobalCell {
  uint32_t writer, write_clock, reader, read_clock;
  uint8_t written, read;
  bool strong_write, strong_read;
};

struct Free {
  void operator()(void* p) const { std::free(p); }
};

struct Block {
  Machine* machine;
  Cluster* cluster = nullptr;
  uint32_t rank = 0;  // in the cluster
  bool exited = false;
  uint32_t number = 0;
  uint32_t id[3];
  std::vector<uint8_t> shared;
  std::vector<uint8_t> written;                    // per byte of shared memory
  std::vector<Cell> cells;                         // per four bytes
  std::unique_ptr<Touch[]> reads;                  // [warp][cell]: valid for the cell's readers
  std::map<std::pair<int, int>, Touch> far_reads;  // (cell, warp) of other blocks
  std::vector<uint32_t> far_clock;                 // of warps and copies of elsewhere: their latest access
  std::vector<uint32_t> pending;                   // per byte: Guard, and how many cp.async to it have not landed
  uint64_t busy = 0;                               // how many bytes of it are not 0
  std::vector<Warp> warps;
  std::map<int, Barrier> barriers;
  Warpgroups warpgroups;
};

struct Machine {
  std::vector<std::unique_ptr<GlobalCell[], Free>> global;  // per buffer that may be written
  std::unordered_map<uint64_t, Release> releases;           // by the address of a strong access
  Program program;
  WatchedRegisters watched;
  Launch launch;
  Counts counts{};
  std::unique_ptr<Block> ended;  // the latest, whose memory the next may have
  std::vector<std::string> warnings;
  std::vector<uint8_t> warned;  // per instruction
  const Buffer* last_buffer = nullptr;
  const Warp* running = nullptr;  // whose instruction a fault is about
  uint64_t random_state;

  uint32_t random();
  void warn(const Warp& warp, int lane, const std::string& text, WarningKind kind = kOther);
};

using Handler = void (*)(Warp&, const Inst&, uint32_t mask);

enum class Kind : uint8_t { plain, sync, branch, indirect, exit, barrier, warpgroup };

struct HandlerEntry {
  Handler run;
  Kind kind;
};

// Handlers put themselves into the table, by name.
void add(const std::string& name, Handler run, Kind kind = Kind::plain);
const HandlerEntry& handler(int index);

// Registers. Up to 32 bits lie in 32-bit lanes, 64 bits in 64-bit lanes, a predicate is one mask.
template <class T>
T get(const Warp& w, int32_t offset, int lane) {
  T value;
  std::memcpy(&value, w.registers + offset + lane * (sizeof(T) == 8 ? 8 : 4), sizeof(T));
  return value;
}

template <class T>
void set(Warp& w, int32_t offset, int lane, T value) {
  uint8_t* to = w.registers + offset + lane * (sizeof(T) == 8 ? 8 : 4);
  if (sizeof(T) < 4) std::memset(to, 0, 4);
  std::memcpy(to, &value, sizeof(T));
}

inline uint32_t& predicate(Warp& w, int32_t offset) { return *reinterpret_cast<uint32_t*>(w.registers + offset); }

inline void set_predicate(Warp& w, int32_t offset, uint32_t mask, uint32_t value) {
  if (offset >= 0) predicate(w, offset) = (predicate(w, offset) & ~mask) | (value & mask);
}

inline const int32_t* operands(const Warp& w, const Inst& i) { return w.block->machine->program.pool + i.operands; }

inline bool has(uint32_t mask, int lane) { return mask >> lane & 1; }

[[noreturn]] void fault(FaultKind kind, int lane, const char* format, ...) __attribute__((format(printf, 3, 4)));

// memory.cpp: checked access. `bytes` at an address of a state space, for one lane.
enum class Space { generic, global, shared, local, param, cluster };
struct Use {
  bool write = false;
  bool strong = false;            // atomic, volatile, or with an order
  const uint8_t* data = nullptr;  // what a plain store will write
  bool atomic = false;            // reads before it writes
  bool acquire = false, release = false;
  bool wide = true;      // for other blocks, too
  bool recorded = true;  // false: a read that wgmma_memory.cpp keeps
};
uint8_t* access(Warp& w, int lane, Space space, uint64_t address, int bytes, const Use& use);
// The same for global memory, of any alignment and length; races only where `use` is given.
void check_global(Warp& w, int lane, uint64_t address, uint64_t bytes, bool write, const Use* use);
void count_access(Warp& w, Space space, const uint64_t* addresses, uint32_t mask, int bytes, bool write);
void count_rows(Warp& w, const uint32_t* addresses, int rows);  // of 16 bytes, eight at once
inline const char* verb(bool write) { return write ? "write" : "read"; }

// races.cpp: who touched what, and whether that was ordered.
void touch_shared(Block& b, Warp& w, int lane, uint32_t address, int bytes, const Use& use);
void touch_global(Warp& w, int lane, const Buffer& buffer, uint64_t address, int bytes, const Use& use);
void synchronise_lanes(Warp& w, uint32_t lanes);

// fences.cpp: what one thread tells another through memory.
uint32_t warp_number(const Warp& w);  // in the launch, from 1
void synchronise(Warp& w, int lane, std::unordered_map<uint64_t, Release>& releases, uint64_t address, const Use& use);
void fence(Warp& w, Reach reach);

}  // namespace emu
