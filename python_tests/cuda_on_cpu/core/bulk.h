// What plain and tensor bulk copies share.
#pragma once

#include "async_proxy.h"

namespace emu {

// The mbarriers that a copy to shared memory reports to, in the block that `to` names or in all of `multicast`, unless
// it is -1. `to` becomes an offset.
std::vector<Mbarrier*> targets_of(Warp& w, int lane, uint64_t& to, uint64_t barrier, int multicast);

void check_aligned(uint64_t address, uint32_t alignment, int lane, const char* what);

int number(const Warp& w, const Inst& i);  // of an instruction

}  // namespace emu
