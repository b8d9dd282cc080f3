// Forced into ggml's AMX kernels (ggml-cpu/amx/mmq.cpp) by CMakeLists.txt.
//
// GCC 12 declares _tile_loadconfig as reading 8 bytes of the 64-byte tile configuration, so the optimiser
// may drop the stores that fill the rest, and the processor faults on what it finds (#GP at ldtilecfg, or
// #UD at the first tile instruction). This operand covers all 64 bytes. Other modules compile the same file
// without AMX and see an empty header.
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#ifndef EDGECHAT_LDTILECFG  // the tests put an instruction here that every CPU has
#define EDGECHAT_LDTILECFG "ldtilecfg %0"
#endif
#undef _tile_loadconfig
#define _tile_loadconfig(config) \
    __asm__ volatile(EDGECHAT_LDTILECFG ::"m"(*reinterpret_cast<const char(*)[64]>(config)))
#endif
