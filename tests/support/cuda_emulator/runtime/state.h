// What the parts of the runtime share: the launch under way, the memory it may touch, the faults found so far.
#pragma once
#include <cstdint>
#include <deque>
#include <string>
#include <vector>
#include "../include/fibre.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

enum State { READY, AT_BARRIER, AT_WARP, AT_NAMED_BARRIER, AT_MBARRIER, AT_PRODUCTS, DONE };

// One meeting of lanes. Two generations of values, because a lane may come to the next meeting before another has read
// this one's.
struct Rendezvous {
    unsigned mask = 0, arrived = 0, took_part[2] = {0, 0}, unread = 0;
    int meeting = 0, generation = 0, line = 0;
    uint32_t code = 0;
    uint64_t value[2][32];
};
struct Warp {
    unsigned alive = 0;
    uint32_t epoch = 0;  // how many __syncwarp it has passed
    std::vector<Rendezvous*> meetings;
    ~Warp() {
        for (auto meeting : meetings) delete meeting;
    }
};

// Who touched a granule of memory, and when: thread (0 for nobody), epochs of its block and its warp, code address, the
// thread's own clock (see clocks.cpp), and whether through the async proxy.
struct Touch {
    uint32_t who, block_epoch, warp_epoch, code, tick, async;
};
struct Shadow {
    Touch write, read1, read2, atomic1, atomic2;
    uint32_t initialized;
};
struct Region {
    uintptr_t low, high;
    unsigned granule;
    bool readonly, shared, starts_uninitialized;
    Shadow* shadow;
    size_t granules;
    std::string name;
};
struct Fault {
    std::string kind, where;
    uint32_t code, other_code;
    unsigned block, thread;
    uint64_t times;
};

struct Launch {
    int threads, alive;       // of the block that runs
    int arrived, any, count;  // at the barrier
    int any_result, count_result, barrier_line;
    uint32_t barrier_code, block_epoch, block;
    bool aborted;
    void (*entry)(void**);
    void** arguments;
    int order;
    size_t dynamic_bytes;
    uintptr_t code_low, code_high;  // where the kernel's library lies
};
extern Launch launch;
extern std::vector<Warp> warps;
extern std::deque<Region> regions;  // a deque, because growing it moves nothing
extern std::vector<Fault> faults;
extern char* stacks;
extern size_t stack_count;

static inline emu_fibre* fibre(int i) { return (emu_fibre*)(stacks + (size_t)i * EMU_STACK); }
static inline uint32_t code_offset(void* code) { return (uint32_t)((uintptr_t)code - launch.code_low - 1); }

void report(const char* kind, const std::string& where, uint32_t code, uint32_t other_code = 0, int thread = -1);
static inline void fault(const char* kind, void* code) { report(kind, "", code_offset(code), 0, emu_self()->index); }
[[noreturn]] void stop_launch();
void report_deadlock();

void reset_shared_memory();   // between blocks: new blocks find rubbish
void forget_shared_memory();  // between launches
size_t static_shared_bytes();

void forget_copies();  // between blocks

// Vector clocks of the block that runs, from its first mbarrier or named barrier on (clocks.cpp).
typedef std::vector<uint32_t> Clock;
extern bool clocks_run;
extern std::vector<Clock> clocks;     // of each thread, and of each agent that copies for a barrier
extern std::vector<uint32_t> fenced;  // by thread: its clock at its last fence.proxy.async
enum { AGENTS = 64 };
extern uint32_t agent_ticks[AGENTS];  // copies that an agent has made
void stop_clocks();  // between blocks
void start_clocks();
void release_to(Clock& target, int who);
void acquire_from(const Clock& source, int who);
void meet(const std::vector<int>& threads);

// What waits and what is under way (hopper.cpp, products.cpp).
void forget_hopper();
void forget_products();
bool copy_one_box();  // the scheduler calls it when no thread can go on; false if there is none to copy
void end_hopper();    // of a block
void end_products();
void wait_for_others(int state, uint32_t code);  // gives way to other threads
void wake(int thread);
char* shared_pointer(unsigned address, unsigned bytes, void* code);
uint32_t random_number();
// Checks accesses through the async proxy: by this thread, or by an agent with the clock of who started it.
void touch_async(const void* address, unsigned size, int access, void* code, int agent = -1);

void checks_begin(unsigned blocks);
void checks_begin_block();
