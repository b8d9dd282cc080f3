// Suffix index with hash chains like those of LZ matchers, one chain per n-gram length.
//
// An entry is the position of a token, stored under the hashes of the 1, 2, 3 and 4 tokens before that position. A
// newer entry points to the older one with the same hash, so truncation only walks back. Comparing tokens rejects
// entries of other n-grams with the same hash.
#include "edgechat.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <vector>

namespace {

constexpr int     ORDERS       = 4;
constexpr int32_t NONE         = -1;
// Longer matches do not improve drafts.
constexpr int32_t MAX_MATCH    = EDGECHAT_SUFFIX_MAX_MATCH;
// Maximum number of compared occurrences of the last four tokens, newest first.
constexpr int     MAX_COMPARED = EDGECHAT_SUFFIX_MAX_COMPARED;
// Maximum number of visited entries per length, including those of other n-grams.
constexpr int     MAX_STEPS    = 512;
constexpr int32_t MIN_CAPACITY = 64;

// Computes the hashes of the last 1 to ORDERS of `count` tokens and returns their number.
int hashes(const int32_t * end, int32_t count, uint32_t * out) {
    const int orders = std::min<int32_t>(count, ORDERS);
    uint64_t  hash   = 0;
    for (int i = 0; i < orders; i++) {
        hash   = (hash ^ static_cast<uint32_t>(end[-1 - i])) * 0x9E3779B97F4A7C15ull;
        hash  ^= hash >> 29;
        out[i] = static_cast<uint32_t>(hash >> 32);
    }
    return orders;
}

} // namespace

struct edgechat_suffix_index {
    std::vector<int32_t> tokens;
    std::vector<int32_t> older[ORDERS]; // for each entry, the previous one with the same hash
    std::vector<int32_t> heads[ORDERS]; // for each hash, the newest entry
    uint32_t             mask = 0;

    // Throws std::bad_alloc and then leaves the index unchanged.
    void reserve(size_t capacity) {
        capacity = std::max<size_t>(capacity, MIN_CAPACITY);
        size_t n_heads = MIN_CAPACITY;
        while (n_heads * 2 <= capacity) {
            n_heads *= 2;
        }
        std::vector<int32_t> new_older[ORDERS], new_heads[ORDERS];
        for (int order = 0; order < ORDERS; order++) {
            new_older[order].reserve(capacity);
            new_heads[order].assign(n_heads, NONE);
        }
        tokens.reserve(capacity);
        for (int order = 0; order < ORDERS; order++) {
            older[order].swap(new_older[order]);
            heads[order].swap(new_heads[order]);
        }
        mask = static_cast<uint32_t>(n_heads - 1);
        for (size_t i = 0; i < tokens.size(); i++) {
            insert(i);
        }
    }

    void insert(size_t position) {
        uint32_t  found[ORDERS];
        const int orders = hashes(tokens.data() + position, static_cast<int32_t>(position), found);
        for (int order = 0; order < ORDERS; order++) {
            int32_t * head = order < orders ? &heads[order][found[order] & mask] : nullptr;
            older[order].push_back(head != nullptr ? *head : NONE);
            if (head != nullptr) {
                *head = static_cast<int32_t>(position);
            }
        }
    }

    void truncate(size_t size) {
        while (tokens.size() > size) {
            const size_t position = tokens.size() - 1;
            uint32_t     found[ORDERS];
            const int    orders = hashes(tokens.data() + position, static_cast<int32_t>(position), found);
            for (int order = 0; order < ORDERS; order++) {
                if (order < orders) {
                    heads[order][found[order] & mask] = older[order].back();
                }
                older[order].pop_back();
            }
            tokens.pop_back();
        }
    }

    // Returns how many of the last `count` tokens before `end` equal those before `position`.
    int32_t common(const int32_t * end, int32_t count, int32_t position) const {
        const int32_t most   = std::min({count, position, MAX_MATCH});
        int32_t       length = 0;
        while (length < most && end[-1 - length] >= 0 && tokens[position - 1 - length] == end[-1 - length]) {
            length++;
        }
        return length;
    }

    // Returns the position after the longest match, the newest of equally long ones, and its length.
    int32_t match(const int32_t * end, int32_t count, int32_t * length) const {
        uint32_t found[ORDERS];
        *length = 0;
        for (int order = hashes(end, count, found); order > 0; order--) {
            int32_t best = NONE, at = heads[order - 1][found[order - 1] & mask];
            int     compared = 0;
            for (int steps = 0; at != NONE && steps < MAX_STEPS; steps++, at = older[order - 1][at]) {
                if (tokens[at] < 0) {
                    continue; // no token follows
                }
                const int32_t here = common(end, count, at);
                if (here < order) {
                    continue;
                }
                if (here > *length) {
                    best    = at;
                    *length = here;
                }
                // For shorter n-grams, all matches have the same length: longer ones were found with longer n-grams.
                if (order < ORDERS || here == MAX_MATCH || ++compared == MAX_COMPARED) {
                    break;
                }
            }
            if (best != NONE) {
                return best;
            }
        }
        return NONE;
    }
};

edgechat_suffix_index * edgechat_suffix_index_new(int32_t capacity) {
    try {
        auto index = std::make_unique<edgechat_suffix_index>();
        index->reserve(static_cast<size_t>(std::max(capacity, 0)));
        return index.release();
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

void edgechat_suffix_index_free(edgechat_suffix_index * index) {
    delete index;
}

int32_t edgechat_suffix_index_size(const edgechat_suffix_index * index) {
    return static_cast<int32_t>(index->tokens.size());
}

int32_t edgechat_suffix_index_append(edgechat_suffix_index * index, const int32_t * tokens, int32_t count) {
    const size_t before = index->tokens.size();
    try {
        if (before + count > index->tokens.capacity()) {
            index->reserve(std::max(before + count, index->tokens.capacity() + index->tokens.capacity() / 2));
        }
        for (int32_t i = 0; i < count; i++) {
            index->tokens.push_back(tokens[i]);
            index->insert(index->tokens.size() - 1);
        }
    } catch (const std::bad_alloc &) {
        return -1;
    }
    return static_cast<int32_t>(index->tokens.size());
}

void edgechat_suffix_index_truncate(edgechat_suffix_index * index, int32_t size) {
    index->truncate(static_cast<size_t>(std::max(size, 0)));
}

int32_t edgechat_suffix_index_draft(
    const edgechat_suffix_index * index, const int32_t * context, int32_t count, int32_t * draft, int32_t max_draft,
    int32_t * match_length, int32_t * position) {
    const auto &    tokens = index->tokens;
    const auto      size   = static_cast<int32_t>(tokens.size());
    const int32_t * end    = context != nullptr ? context + count : tokens.data() + size;
    const int32_t   from   = index->match(end, context != nullptr ? count : size, match_length);
    *position              = from;
    if (from == NONE) {
        return 0;
    }
    for (int32_t i = 0; i < max_draft; i++) {
        // At the end of the indexed text, the draft continues with its own beginning, because the text repeats itself.
        const bool    is_over = from + i >= size;
        const int32_t token   = !is_over ? tokens[from + i] : context == nullptr ? draft[from + i - size] : NONE;
        if (token < 0) {
            return i;
        }
        draft[i] = token;
    }
    return std::max(max_draft, 0);
}

uint64_t edgechat_suffix_index_bytes(const edgechat_suffix_index * index) {
    uint64_t count = index->tokens.capacity();
    for (int order = 0; order < ORDERS; order++) {
        count += index->older[order].capacity() + index->heads[order].capacity();
    }
    return count * sizeof(int32_t) + sizeof(*index);
}
