// What the asynchronous proxy does with shared memory: bulk copies here, operands of wgmma elsewhere.
#pragma once

#include "cluster.h"

namespace emu {

// Bits of Block::pending, above the count of cp.async.
enum Guard : uint32_t {
  kCopies = 0x7f,
  kOneReader = 0x80,
  kTarget = 1u << 30,
  kMbarrier = 1u << 31,
};

// A read by the async proxy for one lane: bounds, races, copies under way, and that what generic stores have written
// has passed a fence.proxy.async. `what` names the instruction. The bytes are at b.shared[address].
void async_read(Block& b, Warp& w, int lane, uint32_t address, uint32_t bytes, const char* what);

// The last part alone.
void check_fenced(const Block& b, const Warp& w, int lane, uint32_t address, uint32_t bytes, const char* what);

// A write by the async proxy is about to begin: nobody may still use these bytes.
void async_write(Block& b, Warp& w, int lane, uint32_t address, uint32_t bytes);

// What it wrote: `place` and `clock` are those of the mbarrier that tells of it.
void async_wrote(Block& b, uint32_t address, uint32_t bytes, int place, uint32_t clock);

// A use of bytes that a copy or an mbarrier has.
void refuse_guarded(const Block& b, int lane, uint32_t address, int bytes, bool write);
void check_write(Block& b, Warp& w, int lane, uint32_t address, uint32_t bytes);
void guard(Block& b, uint32_t address, uint32_t bytes, uint32_t change);
void proxy_fence(Warp& w, uint32_t lanes);

// transfers.cpp
void begin(Cluster& c, Transfer transfer);
void begin(Cluster& c, Store store);
bool land_next(Cluster& c, bool overdue);  // overdue: only one that has been under way for long; whether there was one
void land_some(Cluster& c);                // at random
void write_global(Store& store);
void wait_stores(Warp& w, uint32_t lanes, uint32_t groups, bool read_only);

// mbarrier.cpp
Mbarrier& mbarrier_at(Warp& w, int lane, Block& b, uint32_t address);
void complete_bytes(Mbarrier& m, int64_t bytes, int lane);
void arrive(Mbarrier& m, uint32_t count, int lane);
// cp_async.cpp
void land_first(Warp& w, int lane, int count);

// The address in operand k, with its offset in imm[k]; bit k of imm[3]: the register has 64 bits.
inline uint64_t operand_address(const Warp& w, const Inst& i, int k, int lane) {
  const int32_t reg = operands(w, i)[k];
  return (i.imm[3] >> k & 1 ? get<uint64_t>(w, reg, lane) : get<uint32_t>(w, reg, lane)) + i.imm[k];
}

}  // namespace emu
