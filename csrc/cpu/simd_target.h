// CAPMOE_TARGET_BEGIN(isa) ... CAPMOE_TARGET_END: the functions between are compiled for an instruction set that the
// rest of the binary does not assume. Include the standard library before, or its inline functions are too.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#include "convert.h"
#include "grouped_mlp.h"

// GCC 12 takes the operand that _mm512_undefined_epi32 leaves open for a mistake of ours (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define CAPMOE_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define CAPMOE_TARGET_BEGIN(isa) CAPMOE_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define CAPMOE_TARGET_END CAPMOE_PRAGMA(clang attribute pop)
#else
#define CAPMOE_TARGET_BEGIN(isa) CAPMOE_PRAGMA(GCC push_options) CAPMOE_PRAGMA(GCC target(isa))
#define CAPMOE_TARGET_END CAPMOE_PRAGMA(GCC pop_options)
#endif
