// A lowered kernel, as lower.py hands it over, and what a launch reports. Plain structs: Python fills and reads them.
#pragma once

#include <cstdint>

namespace emu {

constexpr int kLanes = 32;
constexpr int kMaxImmediates = 6;

// Where the windows of the generic address space begin. Global memory is at its real addresses.
constexpr uint64_t kSharedWindow = 0x0100000000000000ull;
constexpr uint64_t kParamWindow = 0x0200000000000000ull;
constexpr uint64_t kLocalWindow = 0x0300000000000000ull;
constexpr uint64_t kWindowSize = 1ull << 32;

extern "C" {

struct Inst {
  int32_t handler;   // index into the table of handlers
  int32_t guard;     // register of the predicate, or -1
  int32_t negate;    // run where the guard is false
  int32_t operands;  // first in the operand pool
  int32_t count;     // of operands
  int32_t target;    // of a branch: an instruction, or -1
  int64_t imm[kMaxImmediates];
};

// What a register holds when a warp starts.
struct Init {
  int32_t offset;
  int32_t kind;  // InitKind
  uint64_t value;
};

enum InitKind { kConst32, kConst64, kConstPred, kSpecial };

enum Special {
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kLaneId,
  kWarpId,
  kLanemaskEq,
  kLanemaskLt,
  kLanemaskLe,
  kLanemaskGt,
  kLanemaskGe,
  kDynamicShared,
  kTotalShared,
  kClusterCtaidX,
  kClusterCtaidY,
  kClusterCtaidZ,
  kClusterNctaidX,
  kClusterNctaidY,
  kClusterNctaidZ,
  kClusterCtarank,
  kClusterNctarank,
  kClusteridX,
  kClusteridY,
  kClusteridZ,
  kNclusteridX,
  kNclusteridY,
  kNclusteridZ,
  kIsExplicitCluster,
  kEnvreg1,
  kEnvreg2
};

struct Buffer {
  uint64_t base;
  uint64_t size;
  int32_t read_only;
  int32_t pad;
};

struct Program {
  const Inst* insts;
  int64_t num_insts;
  const int32_t* pool;
  const Init* inits;
  int64_t num_inits;
  int64_t register_bytes;
  int64_t static_shared;
  int64_t local_bytes;
};

struct Launch {
  uint32_t grid[3];
  uint32_t block[3];
  int64_t dynamic_shared;
  const Buffer* buffers;
  int64_t num_buffers;
  const uint8_t* params;
  int64_t param_bytes;
  uint64_t seed;       // 0: lowest pc, first warp, first block first
  int64_t resident;    // blocks in flight
  int64_t max_steps;   // warp instructions before a launch counts as hung
  uint64_t* executed;  // per instruction: how often a warp ran it; may be null
  // Per buffer, and of it per byte, 1 where somebody has written; null where nobody asks.
  uint8_t* const* written;
  uint32_t cluster[3];
  uint32_t explicit_cluster;
  uint64_t workspace;  // of a cooperative launch, for grid.sync(); 0: none
};

enum FaultKind {
  kNone,
  kOutOfBounds,
  kMisaligned,
  kReadOnly,
  kSharedRace,
  kBarrierDivergence,
  kHang,
  kTrap,
  kUnsupported,
  kInvalid,
  kGlobalRace,
  kRegisterRace = 20
};

enum WarningKind { kOther, kUninitialisedShared, kUninitialisedGlobal, kShuffle };

struct Fault {
  int32_t kind;
  int32_t inst;
  uint32_t block[3];
  int32_t thread;
  char text[480];
};

struct Counts {
  uint64_t warp_instructions, thread_instructions;
  uint64_t global_load_requests, global_load_sectors, global_load_bytes;
  uint64_t global_store_requests, global_store_sectors, global_store_bytes;
  uint64_t shared_requests, shared_wavefronts;
  uint64_t barriers, atomics, tensor_flops;
  uint64_t bulk_copies, bulk_bytes, prefetches;
};

}  // extern "C"
}  // namespace emu
