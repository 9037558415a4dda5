// Barriers, fences and warp intrinsics. Each passes its source line on, so that threads which meet at different lines
// are noticed.
#pragma once
#include <cstring>
#include "fibre.h"

#define EMU_LANE ((int)emu_self()->lane)

#define __syncthreads() ((void)emu_barrier(__LINE__, 0, nullptr))
#define __syncthreads_or(predicate) emu_barrier(__LINE__, predicate, nullptr)
#define __syncthreads_and(predicate) (!emu_barrier(__LINE__, !(predicate), nullptr))
#define __syncthreads_count(predicate) emu_barrier_count(__LINE__, predicate)
EMU_HERE int emu_barrier_count(int line, int predicate) {
    int count;
    emu_barrier(line, predicate, &count);
    return count;
}
EMU_HERE void __threadfence() { emu_fence(); }
EMU_HERE void __threadfence_block() {}

EMU_HERE void emu_syncwarp(int line, unsigned mask = 0xffffffffu) {
    unsigned part;
    emu_warp(line, EMU_SYNCWARP, mask, 0, &part);
}

template <class T> EMU_HERE T emu_shuffle_from(int line, unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t published = 0;
    memcpy(&published, &value, sizeof(T));
    unsigned part;
    const uint64_t* all = emu_warp(line, EMU_SHUFFLE, mask, published, &part);
    if (!(part >> source & 1)) emu_fail("shuffle reads an inactive lane");
    T result;
    memcpy(&result, &all[source], sizeof(T));
    return result;
}
template <class T> EMU_HERE T emu_shfl(int line, unsigned mask, T value, int source, int width = 32) {
    return emu_shuffle_from(line, mask, value, (EMU_LANE & ~(width - 1)) | (source & (width - 1)));
}
template <class T> EMU_HERE T emu_shfl_down(int line, unsigned mask, T value, unsigned delta, int width = 32) {
    int lane = EMU_LANE;
    return emu_shuffle_from(line, mask, value, (int)((lane & (width - 1)) + delta) < width ? lane + (int)delta : lane);
}
template <class T> EMU_HERE T emu_shfl_up(int line, unsigned mask, T value, unsigned delta, int width = 32) {
    int lane = EMU_LANE;
    return emu_shuffle_from(line, mask, value, (lane & (width - 1)) >= (int)delta ? lane - (int)delta : lane);
}
template <class T> EMU_HERE T emu_shfl_xor(int line, unsigned mask, T value, int bits, int width = 32) {
    int lane = EMU_LANE, source = lane ^ bits;
    return emu_shuffle_from(line, mask, value, (source & ~(width - 1)) > (lane & ~(width - 1)) ? lane : source);
}
EMU_HERE unsigned emu_ballot(int line, unsigned mask, int predicate) {
    unsigned part, result = 0;
    const uint64_t* all = emu_warp(line, EMU_BALLOT, mask, !!predicate, &part);
    for (int i = 0; i < 32; i++)
        if (part >> i & 1) result |= (unsigned)all[i] << i;
    return result;
}
template <class T, class F> EMU_HERE T emu_reduce(int line, unsigned mask, T value, F combine) {
    unsigned part;
    const uint64_t* all = emu_warp(line, EMU_REDUCE, mask, (uint32_t)value, &part);
    bool first = true;
    T result = value;
    for (int i = 0; i < 32; i++)
        if (part >> i & 1) {
            T other = (T)(uint32_t)all[i];
            result = first ? other : combine(result, other);
            first = false;
        }
    return result;
}
template <class T> EMU_HERE T emu_reduce_add(int line, unsigned mask, T value) {
    return emu_reduce(line, mask, value, [](T a, T b) { return (T)(a + b); });
}
template <class T> EMU_HERE T emu_reduce_min(int line, unsigned mask, T value) {
    return emu_reduce(line, mask, value, [](T a, T b) { return a < b ? a : b; });
}
template <class T> EMU_HERE T emu_reduce_max(int line, unsigned mask, T value) {
    return emu_reduce(line, mask, value, [](T a, T b) { return a > b ? a : b; });
}
template <class T> EMU_HERE T emu_reduce_or(int line, unsigned mask, T value) {
    return emu_reduce(line, mask, value, [](T a, T b) { return (T)(a | b); });
}
template <class T> EMU_HERE unsigned emu_match_any(int line, unsigned mask, T value) {
    uint64_t published = 0;
    memcpy(&published, &value, sizeof(T));
    unsigned part, result = 0;
    const uint64_t* all = emu_warp(line, EMU_MATCH, mask, published, &part);
    for (int i = 0; i < 32; i++)
        if ((part >> i & 1) && all[i] == published) result |= 1u << i;
    return result;
}
#define __syncwarp(...) emu_syncwarp(__LINE__, ##__VA_ARGS__)
#define __shfl_sync(...) emu_shfl(__LINE__, ##__VA_ARGS__)
#define __shfl_down_sync(...) emu_shfl_down(__LINE__, ##__VA_ARGS__)
#define __shfl_up_sync(...) emu_shfl_up(__LINE__, ##__VA_ARGS__)
#define __shfl_xor_sync(...) emu_shfl_xor(__LINE__, ##__VA_ARGS__)
#define __ballot_sync(...) emu_ballot(__LINE__, ##__VA_ARGS__)
#define __any_sync(mask, predicate) (emu_ballot(__LINE__, mask, predicate) != 0)
#define __all_sync(mask, predicate) (emu_ballot(__LINE__, mask, !(predicate)) == 0)
#define __reduce_add_sync(...) emu_reduce_add(__LINE__, ##__VA_ARGS__)
#define __reduce_min_sync(...) emu_reduce_min(__LINE__, ##__VA_ARGS__)
#define __reduce_max_sync(...) emu_reduce_max(__LINE__, ##__VA_ARGS__)
#define __reduce_or_sync(...) emu_reduce_or(__LINE__, ##__VA_ARGS__)
#define __match_any_sync(...) emu_match_any(__LINE__, ##__VA_ARGS__)
