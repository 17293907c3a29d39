// What cp.reduce.async.bulk does to each element of global memory.
#pragma once

#include <cstdint>

namespace emu {

enum Reduction { kReduceAdd, kReduceMin, kReduceMax, kReduceAnd, kReduceOr, kReduceXor };

// `bytes` whole elements of a type, numbered as formats.h does.
void reduce(uint8_t* to, const uint8_t* from, uint32_t bytes, int reduction, int type);

}  // namespace emu
