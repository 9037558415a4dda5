// Runs a launch: block by block, and within a block every thread as a fibre that goes on until it waits for others.
#include <sys/mman.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include "state.h"

Launch launch;
std::vector<Warp> warps;
std::deque<Region> regions;
char* stacks;
size_t stack_count;

static std::vector<int> ready;
static std::mt19937 random_order;
static void* scheduler_stack_pointer;
static const unsigned CANARY = 0xc0ffee11;
enum Order { FORWARD, REVERSE, RANDOM };

// Saves the callee-saved registers and the stack pointer, and goes on where the other stack left off.
extern "C" void emu_switch(void** save, void* to);
#ifdef __x86_64__
asm(".text\n.globl emu_switch\n.type emu_switch,@function\nemu_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
#else
#error "the emulator switches stacks in x86-64 assembly"
#endif

static void to_scheduler(emu_fibre* self) { emu_switch(&self->stack_pointer, scheduler_stack_pointer); }

void emu_fence() { emu_self()->fenced = 1; }

uint32_t random_number() { return launch.order == RANDOM ? random_order() : 0; }
void wait_for_others(int state, uint32_t code) {
    emu_fibre* self = emu_self();
    self->waits_at = code;
    self->state = state;
    to_scheduler(self);
}

void wake(int i) {
    if (fibre(i)->state == DONE) return;
    fibre(i)->state = READY;
    ready.push_back(i);
}

static void open_barrier() {
    launch.any_result = launch.any;
    launch.count_result = launch.count;
    launch.arrived = launch.any = launch.count = 0;
    launch.barrier_code = 0;
    launch.block_epoch++;
    std::vector<int> met;
    for (int i = 0; i < launch.threads; i++)
        if (fibre(i)->state == AT_BARRIER) {
            met.push_back(i);
            wake(i);
        }
    meet(met);
}
extern "C" int emu_barrier(int line, int predicate, int* count) {
    emu_fibre* self = emu_self();
    uint32_t code = code_offset(__builtin_return_address(0));
    if (launch.arrived == 0) {
        launch.barrier_code = code;
        launch.barrier_line = line;
    } else if (line != launch.barrier_line) {
        report("barrier reached from different source lines", "", code, launch.barrier_code, self->index);
    }
    launch.arrived++;
    launch.any |= !!predicate;
    launch.count += !!predicate;
    self->waits_at = code;
    self->state = AT_BARRIER;
    if (launch.arrived == launch.alive) open_barrier();
    to_scheduler(self);
    if (count) *count = launch.count_result;
    return launch.any_result;
}

static void conclude(Warp& warp, Rendezvous& meeting, int warp_index) {
    int generation = meeting.generation & 1;
    meeting.took_part[generation] = meeting.arrived;
    meeting.arrived = 0;
    meeting.generation++;
    meeting.unread += __builtin_popcount(meeting.took_part[generation]);
    if (meeting.meeting == EMU_SYNCWARP) {  // only __syncwarp orders memory; a shuffle doesn't
        warp.epoch++;
        std::vector<int> met;
        for (int lane = 0; lane < 32; lane++)
            if (meeting.took_part[generation] >> lane & 1) met.push_back(warp_index * 32 + lane);
        meet(met);
    }
    for (int lane = 0; lane < 32; lane++)
        if (meeting.took_part[generation] >> lane & 1 && fibre(warp_index * 32 + lane)->state == AT_WARP)
            wake(warp_index * 32 + lane);
}
static Rendezvous* find_meeting(Warp& warp, unsigned mask) {
    for (auto meeting : warp.meetings)
        if (meeting->mask == mask) return meeting;
    for (auto meeting : warp.meetings)
        if (!meeting->arrived && !meeting->unread) {
            meeting->mask = mask;
            return meeting;
        }
    warp.meetings.push_back(new Rendezvous);
    warp.meetings.back()->mask = mask;
    return warp.meetings.back();
}
extern "C" const uint64_t* emu_warp(int line, int kind, unsigned mask, uint64_t value, unsigned* took_part) {
    emu_fibre* self = emu_self();
    uint32_t code = code_offset(__builtin_return_address(0));
    Warp& warp = warps[self->warp];
    if (!(mask >> self->lane & 1)) {
        report("lane not named in its own warp mask", "", code, 0, self->index);
        mask |= 1u << self->lane;
    }
    Rendezvous* meeting = find_meeting(warp, mask);
    if (!meeting->arrived) {
        meeting->meeting = kind;
        meeting->line = line;
        meeting->code = code;
    } else if (meeting->meeting != kind || meeting->line != line) {
        report("warp lanes met at different intrinsics or source lines", "", code, meeting->code, self->index);
    }
    int generation = meeting->generation & 1;
    meeting->value[generation][self->lane] = value;
    meeting->arrived |= 1u << self->lane;
    self->waits_at = code;
    if ((meeting->arrived & mask & warp.alive) == (mask & warp.alive)) {
        conclude(warp, *meeting, self->warp);
    } else {
        self->state = AT_WARP;
        to_scheduler(self);
    }
    meeting->unread--;
    *took_part = meeting->took_part[generation];
    memcpy(self->gathered, meeting->value[generation], sizeof self->gathered);
    return self->gathered;
}

// A thread that returns no longer counts at barriers and meetings, so its end may be what the others wait for.
static void thread_ends(emu_fibre* self) {
    self->state = DONE;
    launch.alive--;
    Warp& warp = warps[self->warp];
    warp.alive &= ~(1u << self->lane);
    for (auto meeting : warp.meetings)
        if (meeting->arrived && (meeting->arrived & warp.alive) == (meeting->mask & warp.alive))
            conclude(warp, *meeting, self->warp);
    if (launch.alive && launch.arrived == launch.alive) open_barrier();
}
static void fibre_main() {
    emu_fibre* self = emu_self();
    launch.entry(launch.arguments);
    thread_ends(self);
    to_scheduler(self);
    abort();
}
// Lays out a stack that emu_switch can "return" from into fibre_main.
static void prepare(int i) {
    emu_fibre* self = fibre(i);
    void** top = (void**)((char*)self + EMU_STACK - 64);
    *--top = nullptr;
    *--top = (void*)fibre_main;
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    self->stack_pointer = top;
    self->state = READY;
    self->canary = CANARY;
}

template <class T> static void arrange(std::vector<T>& items) {
    if (launch.order == REVERSE) std::reverse(items.begin(), items.end());
    if (launch.order == RANDOM) std::shuffle(items.begin(), items.end(), random_order);
}
static void run_block(uint3 position, dim3 block, dim3 grid) {
    warps.clear();
    warps.resize((launch.threads + 31) / 32);
    ready.clear();
    launch.alive = launch.threads;
    launch.arrived = launch.any = launch.count = 0;
    launch.block_epoch = 1;
    launch.barrier_code = 0;
    checks_begin_block();
    reset_shared_memory();
    forget_copies();
    stop_clocks();
    forget_hopper();
    forget_products();
    for (int i = 0; i < launch.threads; i++) {
        emu_fibre* self = fibre(i);
        self->thread = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
        self->block = position;
        self->block_size = block;
        self->grid_size = grid;
        self->fenced = 0;
        self->index = i;
        self->lane = i & 31;
        self->warp = i >> 5;
        warps[self->warp].alive |= 1u << self->lane;
        prepare(i);
        ready.push_back(i);
    }
    std::vector<int> batch;
    while (launch.alive && !launch.aborted) {
        if (ready.empty() && copy_one_box()) continue;
        if (ready.empty()) return report_deadlock();
        batch.swap(ready);
        ready.clear();
        arrange(batch);
        for (int i : batch) {
            emu_switch(&scheduler_stack_pointer, fibre(i)->stack_pointer);
            if (fibre(i)->canary != CANARY) {
                fprintf(stderr, "cuda emulator: a thread needs more than %u bytes of stack\n", EMU_STACK);
                abort();
            }
            if (launch.aborted) return;
        }
    }
    if (launch.aborted) return;
    end_hopper();
    end_products();
}
static void allocate_stacks() {
    stack_count = 1024;
    char* raw = (char*)mmap(nullptr, (stack_count + 1) * EMU_STACK, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) abort();
    stacks = (char*)(((uintptr_t)raw + EMU_STACK - 1) & ~(uintptr_t)(EMU_STACK - 1));
}
// Runs a kernel; returns how many kinds of fault were found.
extern "C" int emu_launch(void (*entry)(void**), void** arguments, const unsigned* grid, const unsigned* block,
                          size_t dynamic_bytes, size_t most_shared, int order, unsigned seed, uintptr_t code_low,
                          uintptr_t code_high) {
    if (!stacks) allocate_stacks();
    launch = Launch();
    launch.threads = block[0] * block[1] * block[2];
    launch.entry = entry;
    launch.arguments = arguments;
    launch.order = order;
    launch.dynamic_bytes = dynamic_bytes;
    launch.code_low = code_low;
    launch.code_high = code_high;
    random_order.seed(seed);
    faults.clear();
    forget_shared_memory();
    unsigned blocks = grid[0] * grid[1] * grid[2];
    checks_begin(blocks);
    std::vector<unsigned> sequence(blocks);
    for (unsigned i = 0; i < blocks; i++) sequence[i] = i;
    arrange(sequence);
    for (unsigned i : sequence) {
        launch.block = i;
        run_block({i % grid[0], i / grid[0] % grid[1], i / (grid[0] * grid[1])}, {block[0], block[1], block[2]},
                  {grid[0], grid[1], grid[2]});
        if (launch.aborted) break;
    }
    if (static_shared_bytes() > 48 * 1024) report("static shared memory over 48 KiB", "", 0);
    if (static_shared_bytes() + dynamic_bytes > most_shared)
        report("static and dynamic shared memory together exceed what was asked for", "", 0);
    return (int)faults.size();
}
