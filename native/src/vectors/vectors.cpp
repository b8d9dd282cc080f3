// Exact search in 8-bit vectors. The scan is limited by memory bandwidth; the dot products only have to keep up.
//
// The query has 12 bits, so that only the stored vectors lose precision. On x86-64, the kernels multiply 16-bit
// integers and add neighbouring products (vpmaddwd). For Arm, compilers vectorise the plain loop with NEON.
#include "edgechat_vectors.h"

#include <algorithm>
#include <atomic>
#include <cstddef>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define EDGECHAT_VECTORS_X86 1
#include <immintrin.h>
#endif

namespace {

static_assert(int64_t(EDGECHAT_VECTORS_MAX_DIMS) * EDGECHAT_VECTORS_MAX_QUERY * 128 <= INT32_MAX, "overflow");

using Dot = int32_t (*)(const int8_t * vector, const int16_t * query, int32_t n_dims);

int32_t dot_plain(const int8_t * vector, const int16_t * query, int32_t n_dims) {
    int32_t sum = 0;
    for (int32_t i = 0; i < n_dims; i++) {
        sum += int32_t(vector[i]) * int32_t(query[i]);
    }
    return sum;
}

#ifdef EDGECHAT_VECTORS_X86

__attribute__((target("avx2"))) int32_t dot_avx2(const int8_t * vector, const int16_t * query, int32_t n_dims) {
    __m256i sums[2] = { _mm256_setzero_si256(), _mm256_setzero_si256() };
    int32_t i       = 0;
    for (; i + 32 <= n_dims; i += 32) {
        for (int half = 0; half < 2; half++) {
            const auto * bytes = reinterpret_cast<const __m128i *>(vector + i + 16 * half);
            const auto * words = reinterpret_cast<const __m256i *>(query + i + 16 * half);
            const __m256i products =
                _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(bytes)), _mm256_loadu_si256(words));
            sums[half] = _mm256_add_epi32(sums[half], products);
        }
    }
    const __m256i all = _mm256_add_epi32(sums[0], sums[1]);
    __m128i sum       = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    sum               = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    sum               = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
    return _mm_cvtsi128_si32(sum) + dot_plain(vector + i, query + i, n_dims - i);
}

__attribute__((target("avx512f,avx512bw"))) int32_t dot_avx512(
    const int8_t * vector, const int16_t * query, int32_t n_dims) {
    __m512i sums[2] = { _mm512_setzero_si512(), _mm512_setzero_si512() };
    int32_t i       = 0;
    for (; i + 64 <= n_dims; i += 64) {
        for (int half = 0; half < 2; half++) {
            const auto * bytes = reinterpret_cast<const __m256i *>(vector + i + 32 * half);
            const __m512i products = _mm512_madd_epi16(
                _mm512_cvtepi8_epi16(_mm256_loadu_si256(bytes)), _mm512_loadu_si512(query + i + 32 * half));
            sums[half] = _mm512_add_epi32(sums[half], products);
        }
    }
    alignas(64) int32_t parts[16];
    _mm512_store_si512(parts, _mm512_add_epi32(sums[0], sums[1]));
    int32_t sum = 0;
    for (const int32_t part : parts) {
        sum += part;
    }
    return sum + dot_plain(vector + i, query + i, n_dims - i);
}

#endif

struct Kernel {
    const char * name;
    Dot          dot; // nullptr if this processor does not support it
};

const Kernel * kernels() {
    static const Kernel all[] = {
        { "plain", dot_plain },
#ifdef EDGECHAT_VECTORS_X86
        { "avx2", __builtin_cpu_supports("avx2") ? dot_avx2 : nullptr },
        { "avx512",
          __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") ? dot_avx512 : nullptr },
#endif
        { nullptr, nullptr },
    };
    return all;
}

const Kernel * find_kernel(int32_t number) {
    const Kernel * best  = nullptr;
    int32_t        index = 0;
    for (const Kernel * kernel = kernels(); kernel->name; kernel++, index++) {
        if (kernel->dot && (number < 0 || index == number)) {
            best = kernel;
        }
    }
    return best;
}

std::atomic<Dot> selected_dot{ nullptr };

struct Results {
    float *   scores;
    int64_t * ids;
    int32_t   size;

    bool is_worse(int32_t a, int32_t b) const {
        return scores[a] < scores[b] || (scores[a] == scores[b] && ids[a] > ids[b]);
    }

    void swap(int32_t a, int32_t b) {
        std::swap(scores[a], scores[b]);
        std::swap(ids[a], ids[b]);
    }

    // Adds a result to the heap, whose root is the worst one.
    void add(float score, int64_t id) {
        int32_t i = size++;
        scores[i] = score;
        ids[i]    = id;
        while (i > 0 && is_worse(i, (i - 1) / 2)) {
            swap(i, (i - 1) / 2);
            i = (i - 1) / 2;
        }
    }

    void replace_worst(float score, int64_t id) {
        scores[0] = score;
        ids[0]    = id;
        for (int32_t i = 0;;) {
            int32_t worst = i;
            for (int32_t child = 2 * i + 1; child <= 2 * i + 2 && child < size; child++) {
                worst = is_worse(child, worst) ? child : worst;
            }
            if (worst == i) {
                return;
            }
            swap(i, worst);
            i = worst;
        }
    }
};

} // namespace

extern "C" {

int32_t edgechat_vectors_scan(
    const int8_t * vectors, const float * factors, const int64_t * ids, int64_t n_vectors, int32_t n_dims,
    const int16_t * query, float * best_scores, int64_t * best_ids, int32_t n_best, int32_t max_best) {
    Dot dot = selected_dot.load(std::memory_order_relaxed);
    if (!dot) {
        dot = find_kernel(-1)->dot;
        selected_dot.store(dot, std::memory_order_relaxed);
    }
    Results results{ best_scores, best_ids, n_best };
    for (int64_t i = 0; i < n_vectors; i++) {
        const float score = factors[i] * static_cast<float>(dot(vectors + i * n_dims, query, n_dims));
        if (results.size < max_best) {
            results.add(score, ids[i]);
        } else if (max_best > 0 && (score > best_scores[0] || (score == best_scores[0] && ids[i] < best_ids[0]))) {
            results.replace_worst(score, ids[i]);
        }
    }
    return results.size;
}

const char * edgechat_vectors_select(int32_t kernel) {
    const Kernel * found = find_kernel(kernel);
    if (!found) {
        return nullptr;
    }
    selected_dot.store(found->dot, std::memory_order_relaxed);
    return found->name;
}
}
