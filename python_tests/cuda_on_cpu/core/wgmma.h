// Warpgroups: four warps that multiply together, and what is under way for them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "program.h"

namespace emu {

struct Block;
struct Warp;

constexpr int kGroupWarps = 4;
constexpr int kGranule = 16;  // bytes of shared memory that lie together in every layout of an operand

// imm[4] of wgmma.mma.
enum WgmmaFlag {
  kFromRegisters = 1,
  kTransposeA = 2,
  kTransposeB = 4,
  kNegateA = 8,
  kNegateB = 16,
  kSaturate = 32,
  kScaleNegated = 64
};

// A wgmma.mma_async that has been issued and has not landed.
struct Wgmma {
  const Inst* inst;
  uint32_t group;                              // of wgmma.commit_group
  uint64_t a, b;                               // descriptors
  bool accumulate;                             // scale-d
  uint32_t fragments[kGroupWarps][4][kLanes];  // A, where it comes from registers
  std::vector<uint32_t> reads;                 // granules of shared memory
};

struct Warpgroup {
  uint32_t arrived = 0;      // warps that wait for the others
  const Inst* at = nullptr;  // where they wait
  uint32_t committed = 0;    // groups of wgmma
  int64_t registers = 0;     // of setmaxnreg, per thread; 0: what the kernel began with
  int64_t wanted = 0;        // of a setmaxnreg.inc that waits
  std::vector<Wgmma> under_way;
  std::vector<uint8_t> writes;     // per watched register: how many of `under_way` write it,
  std::vector<uint8_t> fragments;  // and how many multiply it
};

// What a block keeps for its warpgroups.
struct Warpgroups {
  std::vector<Warpgroup> groups;
  std::vector<uint16_t> reading;  // per granule: how many wgmma under way read it
  std::vector<uint32_t> landed;   // [granule][warp]: its clock when a wgmma that read the granule had landed
  int64_t free_registers = 0;     // that setmaxnreg.dec has given back
};

// The registers that any wgmma of the program uses, those that a mov connects with them, and who else touches these.
struct WatchedRegisters {
  std::vector<int32_t> number;       // by a register's offset / 64: its place among the watched, or -1
  std::vector<uint8_t> instruction;  // per instruction: whether it touches one; empty where nothing is watched
  int count = 0;

  int of(int32_t offset) const { return offset < 0 ? -1 : number[offset / 64]; }
};

// What a warp has done to the watched registers since its last wgmma.fence.
struct RegisterUse {
  bool fenced = false;           // whether there was one at all
  std::vector<uint8_t> touched;  // read or written by another instruction
  std::vector<uint16_t> shape;   // the N of the wgmma that accumulates there; 0: none
};

// warpgroup.cpp
void start_warpgroups(Block& b);
Warpgroup& warpgroup_of(Warp& w);
Warp& first_warp(Warp& w);
void meet(Warp& w, const Inst& i);  // a warp comes to a warpgroup's instruction, and waits for the other three
std::string waits_in_warpgroup(Warp& w);

// wgmma_registers.cpp
WatchedRegisters watch_registers(const Program& program);
void check_fence(Warp& w, const Inst& i);
void run_watched(Warp& w, const Inst& i, uint32_t mask);  // any other instruction, its registers checked
void count_registers(Warp& first, const Wgmma& op, int change);

// wgmma_memory.cpp
const uint8_t* read_granule(Warp& w, uint32_t address);
void begin_read(Warp& first, Wgmma& op, uint32_t address, uint32_t warps);
void end_reads(Warp& first, const Wgmma& op);
void refuse_write(const Block& b, const Warp& w, int lane, uint32_t address, int bytes);

// wgmma.cpp
void land(Warp& first, uint32_t groups);  // those under way of the first so many groups

}  // namespace emu
