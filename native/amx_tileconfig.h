// CMakeLists.txt includes this file in ggml's AMX kernels (ggml-cpu/amx/mmq.cpp).
//
// GCC 12 declares _tile_loadconfig as reading 8 bytes of the 64-byte tile configuration, so the optimiser
// may drop the stores to the rest, and the processor faults on the garbage (#GP at ldtilecfg, or #UD at the first tile
// instruction). The operand below covers all 64 bytes. Modules without AMX see an empty header.
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#ifndef EDGECHAT_LDTILECFG  // tests substitute an instruction that every CPU has
#define EDGECHAT_LDTILECFG "ldtilecfg %0"
#endif
#undef _tile_loadconfig
#define _tile_loadconfig(config) \
    __asm__ volatile(EDGECHAT_LDTILECFG ::"m"(*reinterpret_cast<const char(*)[64]>(config)))
#endif
