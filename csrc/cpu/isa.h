// Which instruction set the kernels of this process use.
#pragma once

namespace capmoe::cpu {

enum class Isa { scalar, avx2, avx512, avx512_bf16, amx };  // each includes those before it

// The best that the processor has, or the lesser one that CAPMOE_CPU_ISA names; chosen at the first call.
Isa chosen_isa();

}  // namespace capmoe::cpu
