// Mode "check": g++ -fsanitize=thread calls a function before every access to memory; here those functions look for
// what compute-sanitizer would find on a GPU: accesses out of bounds, races, reads of what nobody wrote.
//
// Races don't depend on the schedule that happened to run. Each granule of memory remembers who touched it and in which
// epoch of the block (counted by __syncthreads) and of the warp (by __syncwarp); two accesses by different threads, one
// of them a write, with no such epoch between them are a race, whichever came first. Blocks order each other only by a
// fence and an atomic.
#include "state.h"
#ifdef EMU_CHECK
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>

static Region* last_region;  // most accesses hit the region of the one before
// Fence-then-atomic on an address releases what a block wrote to every block that later makes an atomic access there.
static std::map<uintptr_t, std::vector<uint32_t>> released;
static std::vector<uint8_t> acquired;

void checks_begin(unsigned blocks) {
    last_region = nullptr;
    released.clear();
    acquired.assign(blocks, 0);
}
void checks_begin_block() { std::fill(acquired.begin(), acquired.end(), 0); }
// A thread is numbered 1 + 1024 block + index.
static uint32_t block_of(uint32_t who) { return (who - 1) >> 10; }
static uint32_t warp_of(uint32_t who) { return (who - 1) >> 5; }
static int index_of(uint32_t who) { return (who - 1) & 1023; }
static bool is_agent(uint32_t who) { return index_of(who) >= launch.threads; }

static const Clock* clock_now;  // of whoever makes the access that is being checked
static bool ordered(const Touch& earlier, const Touch& now) {
    if (earlier.who == 0) return true;
    if (block_of(earlier.who) != launch.block) return acquired[block_of(earlier.who)];
    if (!is_agent(earlier.who)) {
        if (earlier.who == now.who || earlier.block_epoch < now.block_epoch) return true;
        if (warp_of(earlier.who) == warp_of(now.who) && earlier.warp_epoch < now.warp_epoch) return true;
    }
    return clock_now && (*clock_now)[index_of(earlier.who)] >= earlier.tick;
}
static void
report_race(const char* what, const Region& region, uintptr_t address, const Touch& now, const Touch& earlier) {
    char where[200];
    unsigned thread = (now.who - 1) & 1023;
    snprintf(where, sizeof where, "%s+%zu, thread %u against thread %u of block %u", region.name.c_str(),
             (size_t)(address - region.low), thread, (earlier.who - 1) & 1023, block_of(earlier.who));
    std::string kind = std::string("race: ") + what + (block_of(earlier.who) != launch.block ? " between blocks" : "");
    report(kind.c_str(), where, now.code, earlier.code, thread);
}
static Region* find_region(uintptr_t address, unsigned size) {
    if (last_region && address >= last_region->low && address + size <= last_region->high) return last_region;
    for (auto& region : regions)
        if (address >= region.low && address + size <= region.high) return last_region = &region;
    return nullptr;
}
[[noreturn]] static void out_of_bounds(uintptr_t address, unsigned size, int kind, uint32_t code) {
    const Region* nearest = nullptr;
    uintptr_t distance = ~(uintptr_t)0;
    for (auto& region : regions) {
        uintptr_t d = address < region.low ? region.low - address : address - region.high;
        if (d < distance) {
            distance = d;
            nearest = &region;
        }
    }
    char where[200];
    snprintf(where, sizeof where, "%u bytes, %zu bytes %s %s (%zu bytes)", size, (size_t)distance,
             nearest && address < nearest->low ? "before" : "past the end of",
             nearest ? nearest->name.c_str() : "nothing", nearest ? (size_t)(nearest->high - nearest->low) : 0);
    report(kind == EMU_READ ? "out-of-bounds read" : "out-of-bounds write", where, code, 0, emu_self()->index);
    stop_launch();
}
static void check_granule(Shadow& s, Region& region, uintptr_t address, size_t granule, int kind, const Touch& now) {
    // Shared memory is new in every block: its shadow carries the block it speaks of.
    uint32_t generation = region.shared ? launch.block + 1 : 1;
    if (region.shared && s.initialized >> 1 != generation) {
        memset(&s, 0, sizeof s);
        s.initialized = generation << 1;
    }
    if (kind != EMU_WRITE && region.starts_uninitialized && !(s.initialized & 1)) {
        report("read of uninitialized memory", region.name + "+" + std::to_string(granule * region.granule), now.code,
               0, emu_self()->index);
        s.initialized |= 1;
    }
    if (now.async && !s.write.async && s.write.who && block_of(s.write.who) == launch.block &&
        fenced[index_of(s.write.who)] < s.write.tick)
        report("a store that the async proxy may not see (fence.proxy.async)", region.name, now.code, s.write.code,
               index_of(now.who));
    if (kind == EMU_READ) {
        if (!ordered(s.write, now)) report_race("read after write", region, address, now, s.write);
        else if (!ordered(s.atomic1, now)) report_race("read after atomic", region, address, now, s.atomic1);
        else if (!ordered(s.atomic2, now)) report_race("read after atomic", region, address, now, s.atomic2);
        if (s.read1.who != now.who) s.read2 = s.read1;
        s.read1 = now;
        return;
    }
    if (!ordered(s.write, now))
        report_race(kind == EMU_WRITE ? "write after write" : "atomic after write", region, address, now, s.write);
    else if (!ordered(s.read1, now)) report_race("write after read", region, address, now, s.read1);
    else if (!ordered(s.read2, now)) report_race("write after read", region, address, now, s.read2);
    if (kind == EMU_WRITE) {
        if (!ordered(s.atomic1, now)) report_race("write after atomic", region, address, now, s.atomic1);
        else if (!ordered(s.atomic2, now)) report_race("write after atomic", region, address, now, s.atomic2);
        s.write = now;
    } else {
        if (s.atomic1.who != now.who) s.atomic2 = s.atomic1;
        s.atomic1 = now;
    }
    s.initialized |= 1;
}
static void
check(const void* p, unsigned size, int kind, void* return_address, bool async = false, int agent = -1) {
    uintptr_t address = (uintptr_t)p, stack_bytes = stack_count * EMU_STACK;
    if ((uintptr_t)emu_self() - (uintptr_t)stacks >= stack_bytes) return;          // not a thread of a kernel
    if (address - (uintptr_t)stacks < stack_bytes) return;                         // a thread's own variables
    if (address >= launch.code_low && address + size <= launch.code_high) return;  // constants of the kernel's file
    uint32_t code = code_offset(return_address);
    Region* region = find_region(address, size);
    if (!region) out_of_bounds(address, size, kind, code);
    if (address & (size - 1) && size <= 16) {
        report("misaligned access", region->name, code, 0, emu_self()->index);
        stop_launch();  // as on a GPU; and the processor might fault on it
    }
    if (region->readonly) {
        if (kind == EMU_READ) return;
        report("write to const buffer", region->name, code, 0, emu_self()->index);
        stop_launch();
    }
    emu_fibre* self = emu_self();
    if (kind == EMU_ATOMIC) {
        auto& blocks = released[address];
        for (uint32_t block : blocks) acquired[block] = 1;
        if (self->fenced) blocks.push_back(launch.block);
    }
    const int who = agent < 0 ? (int)self->index : launch.threads + agent;
    clock_now = clocks_run ? &clocks[who] : nullptr;
    Touch now{launch.block * 1024 + who + 1, launch.block_epoch, agent < 0 ? warps[self->warp].epoch : 0, code,
              !clocks_run ? 1 : agent < 0 ? clocks[who][who] : agent_ticks[agent], async};
    size_t first = (address - region->low) / region->granule,
           last = (address + size - 1 - region->low) / region->granule;
    for (size_t granule = first; granule <= last; granule++)
        check_granule(region->shadow[granule], *region, address, granule, kind, now);
}

#define CALLER __builtin_return_address(0)
static void check_range(void* p, size_t bytes, int kind, void* code) {
    for (size_t i = 0; i < bytes; i += 2) check((char*)p + i, (unsigned)std::min<size_t>(2, bytes - i), kind, code);
}
void touch_async(const void* p, unsigned size, int kind, void* code, int agent) {
    check(p, size, kind, code, true, agent);
}
extern "C" {
void emu_touch(const void* p, unsigned size, int kind, void* code) { check(p, size, kind, code); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
#define ACCESSES(size) \
    void __tsan_read##size(void* p) { check(p, size, EMU_READ, CALLER); } \
    void __tsan_write##size(void* p) { check(p, size, EMU_WRITE, CALLER); } \
    void __tsan_unaligned_read##size(void* p) { check(p, size, EMU_READ, CALLER); } \
    void __tsan_unaligned_write##size(void* p) { check(p, size, EMU_WRITE, CALLER); }
ACCESSES(1) ACCESSES(2) ACCESSES(4) ACCESSES(8) ACCESSES(16) void __tsan_read_range(void* p, size_t bytes) {
    check_range(p, bytes, EMU_READ, CALLER);
}
void __tsan_write_range(void* p, size_t bytes) { check_range(p, bytes, EMU_WRITE, CALLER); }
}
#else
extern "C" void emu_touch(const void*, unsigned, int, void*) {}
void touch_async(const void*, unsigned, int, void*, int) {}
void checks_begin(unsigned) {}
void checks_begin_block() {}
#endif
