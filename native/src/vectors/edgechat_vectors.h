// The C ABI of libedgechat-vectors: exact search in 8-bit vectors. The library needs no other library of the bundle.
#pragma once

#include <stdint.h>

#ifdef _WIN32
#define EDGECHAT_VECTORS_API __declspec(dllexport)
#else
#define EDGECHAT_VECTORS_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Maximum number of dimensions, and maximum absolute value of a query: a dot product then fits into 32 bits.
#define EDGECHAT_VECTORS_MAX_DIMS 8192
#define EDGECHAT_VECTORS_MAX_QUERY 2047

// Compares a query with `n_vectors` vectors of `n_dims` values each, stored one after the other, and updates the
// `max_best` best results. The score of a vector is its factor times its dot product with the query; of equal scores,
// the smaller id is better. The arrays `best_scores` and `best_ids` have `max_best` entries, of which the first
// `n_best` are results of earlier calls. Returns the new number of results; they are in no particular order, but the
// next call expects this order. All kernels return the same results.
EDGECHAT_VECTORS_API int32_t edgechat_vectors_scan(
    const int8_t * vectors, const float * factors, const int64_t * ids, int64_t n_vectors, int32_t n_dims,
    const int16_t * query, float * best_scores, int64_t * best_ids, int32_t n_best, int32_t max_best);

// Selects the kernel by its number, from 0 for the plain one; -1 for the best one that this processor supports, which
// is the default. Returns its name, or NULL if this processor or build does not support it.
EDGECHAT_VECTORS_API const char * edgechat_vectors_select(int32_t kernel);

#ifdef __cplusplus
}
#endif
