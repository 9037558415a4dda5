// A CUDA thread on the CPU: a fibre, a stack of its own that the scheduler switches to and from.
// Everything a thread asks about itself (threadIdx, its warp, its lane) is kept at the foot of that stack.
#pragma once
// Part of the kernel's own line, so that a fault in it is named by that.
#define EMU_HERE static inline __attribute__((always_inline))
#include <cstddef>
#include <cstdint>

#define EMU_STACK (1u << 16)  // bytes; a power of two, so that masking the stack pointer finds the foot

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
};

struct emu_fibre {
    uint3 thread, block;
    dim3 block_size, grid_size;
    unsigned index, lane, warp;  // index: of the thread in its block
    unsigned fenced;             // it has called __threadfence
    void* stack_pointer;
    int state;
    uint32_t waits_at;      // code address of the barrier or intrinsic it stands at
    uint64_t gathered[32];  // what the lanes of its warp published at the last meeting
    unsigned canary;        // overwritten when the stack overflows
};

static inline __attribute__((always_inline)) emu_fibre* emu_self() {
    return (emu_fibre*)((uintptr_t)__builtin_frame_address(0) & ~(uintptr_t)(EMU_STACK - 1));
}
#define threadIdx (emu_self()->thread)
#define blockIdx (emu_self()->block)
#define blockDim (emu_self()->block_size)
#define gridDim (emu_self()->grid_size)
#define warpSize 32

// What the runtime offers to compiled kernels.
enum emu_access { EMU_READ, EMU_WRITE, EMU_ATOMIC };
enum emu_meeting { EMU_SHUFFLE = 1, EMU_BALLOT, EMU_SYNCWARP, EMU_REDUCE, EMU_MATCH };
extern "C" {
void* emu_shared(int id, size_t bytes, unsigned granule, const char* name);
void* emu_dynamic_shared(unsigned granule);
// A barrier of the block: returns whether any predicate held, and counts those that did.
int emu_barrier(int line, int predicate, int* count);
// A meeting of the lanes in mask: returns what the 32 lanes published; *took_part says which did.
const uint64_t* emu_warp(int line, int meeting, unsigned mask, uint64_t value, unsigned* took_part);
void emu_fail(const char* kind);
// Checks an access that the header makes on the kernel's behalf.
void emu_touch(const void* address, unsigned size, int access, void* code);
void emu_fence();
// Twins of cp.async, of its commit_group and of its wait_group, for the branch of a kernel that stands for inline PTX.
void emu_copy_later(void* to, const void* from, unsigned bytes);
void emu_close_copies();
void emu_await_copies(int pending);
}

// translate.py turns each __shared__ declaration into one of these.
#define EMU_SHARED(T, name, dimensions, id) \
    typedef T emu_type_##name dimensions; \
    emu_type_##name& name = \
        *(emu_type_##name*)emu_shared(id, sizeof(emu_type_##name), sizeof(T) < 4 ? sizeof(T) : 4, #name)
#define EMU_DYNAMIC_SHARED(T, name) T* name = (T*)emu_dynamic_shared(sizeof(T) < 4 ? sizeof(T) : 4)
