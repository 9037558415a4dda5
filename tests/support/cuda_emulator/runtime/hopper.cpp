// Barriers in shared memory that count arrivals and bytes (mbarrier), named barriers, and copies by the tensor memory
// accelerator. A copy is carried out when no thread can go on without it, in any order.
#include <algorithm>
#include <cstring>
#include <map>
#include "state.h"
#include "../include/hopper.h"

struct Mbarrier {
    unsigned count, pending, phase = 0;
    int64_t bytes = 0;
    int agent, made_by;
    uint32_t made_at;
    Clock arriving, ended;        // what this phase's arrivals know, and those of all that have ended
    std::map<int, unsigned> waiting;  // threads, and the parity that they wait for
};
struct NamedBarrier {
    int threads = 0, arrived = 0;
    Clock known;               // to those who have arrived
    std::vector<int> waiting;
    std::map<int, int> lines;  // where threads wait (1) or only arrive (0): each kind at one line
};
// A tensor map as tensor_map.py writes it.
struct Map {
    uint64_t magic, address, sizes[3], steps[2];
    uint32_t box[3], item, swizzle, padding[3];
};
static_assert(sizeof(Map) <= 128, "a tensor map has 128 bytes");
struct BoxCopy {
    char* target;
    unsigned address;
    Map map;
    int place[3];
    unsigned barrier;
    uint32_t tick;
};
static std::map<unsigned, Mbarrier> mbarriers;
static std::map<int, NamedBarrier> named;
static std::vector<BoxCopy> boxes;

void forget_hopper() {
    mbarriers.clear();
    named.clear();
    boxes.clear();
}
void end_hopper() {
    if (!boxes.empty()) report("a copy was under way when its block ended", "", 0);
    for (auto& barrier : named)
        if (barrier.second.arrived) report("a named barrier was left half arrived when its block ended", "", 0);
}
static Mbarrier& find(unsigned address, void* code) {
    auto found = mbarriers.find(address);
    if (found == mbarriers.end()) {
        fault("mbarrier that has not been initialized", code);
        stop_launch();
    }
    emu_touch(shared_pointer(address, 8, code), 8, EMU_ATOMIC, code);
    return found->second;
}
static bool has_ended(const Mbarrier& barrier, unsigned parity) { return (barrier.phase & 1) != parity; }
static void end_phase(Mbarrier& barrier) {
    if (barrier.pending || barrier.bytes) return;
    barrier.phase++;
    barrier.pending = barrier.count;
    barrier.ended = barrier.arriving;
    // A thread that waits knows what this phase tells it, and not what later ones would.
    for (auto i = barrier.waiting.begin(); i != barrier.waiting.end();)
        if (has_ended(barrier, i->second)) {
            acquire_from(barrier.ended, i->first);
            wake(i->first);
            i = barrier.waiting.erase(i);
        } else {
            ++i;
        }
}
static void arrive(Mbarrier& barrier, void* code) {
    if (!barrier.pending) {
        fault("more arrivals at an mbarrier than it counts", code);
        stop_launch();
    }
    release_to(barrier.arriving, emu_self()->index);
    barrier.pending--;
    end_phase(barrier);
}
#define CALLER __builtin_return_address(0)
void emu_mbarrier_init(unsigned address, unsigned count) {
    start_clocks();
    if (address % 8) fault("misaligned mbarrier", CALLER);
    emu_touch(shared_pointer(address, 8, CALLER), 8, EMU_WRITE, CALLER);
    const int self = emu_self()->index;
    Mbarrier barrier;
    barrier.count = barrier.pending = count;
    barrier.agent = (int)mbarriers.size() % AGENTS;
    barrier.made_by = self;
    barrier.made_at = clocks[self][self];
    mbarriers[address] = barrier;
}
void emu_mbarrier_expect(unsigned address, unsigned bytes) {
    Mbarrier& barrier = find(address, CALLER);
    barrier.bytes += bytes;
    arrive(barrier, CALLER);
}
void emu_mbarrier_arrive(unsigned address) { arrive(find(address, CALLER), CALLER); }
void emu_mbarrier_wait(unsigned address, unsigned parity) {
    Mbarrier& barrier = find(address, CALLER);
    const int self = emu_self()->index;
    if (has_ended(barrier, parity)) return acquire_from(barrier.ended, self);
    barrier.waiting[self] = parity;
    wait_for_others(AT_MBARRIER, code_offset(CALLER));
}
static void arrive_at_named(int line, int number, int threads, bool waits, void* code) {
    start_clocks();
    const int self = emu_self()->index;
    if (number < 1 || number > 15 || threads % 32) fault("named barrier with a wrong number or count", code);
    NamedBarrier& barrier = named[number];
    if (!barrier.arrived) barrier.threads = threads, barrier.lines.clear();
    if (barrier.threads != threads || (barrier.lines.count(waits) && barrier.lines[waits] != line))
        fault("named barrier reached from different source lines, or with different counts", code);
    barrier.lines[waits] = line;
    release_to(barrier.known, self);
    if (waits) barrier.waiting.push_back(self);
    if (++barrier.arrived < threads) {
        if (waits) wait_for_others(AT_NAMED_BARRIER, code_offset(code));
        return;
    }
    for (int thread : barrier.waiting) {
        acquire_from(barrier.known, thread);
        if (thread != self) wake(thread);
    }
    barrier.waiting.clear();
    barrier.known.clear();
    barrier.arrived = 0;
}
void emu_named_barrier(int line, int number, int threads) { arrive_at_named(line, number, threads, true, CALLER); }
void emu_named_arrive(int line, int number, int threads) { arrive_at_named(line, number, threads, false, CALLER); }

// Bits 4 to 6 of an address get bits 7 to 9 added without carry (128 bytes), or fewer of them (64 and 32 bytes).
static unsigned swizzled(unsigned address, unsigned mode) {
    return address ^ ((address >> 3) & (mode == 3 ? 0x70 : mode == 2 ? 0x30 : mode == 1 ? 0x10 : 0));
}
void emu_copy_box(unsigned target, const void* described, int x, int y, int z, unsigned address) {
    Mbarrier& barrier = find(address, CALLER);
    BoxCopy copy{nullptr, target, {}, {x, y, z}, address, 0};
    memcpy(&copy.map, described, sizeof copy.map);
    if (copy.map.magic != 0x70616d726f736e74ull) {
        fault("a copy by something that is no tensor map", CALLER);
        stop_launch();
    }
    if (target % 128) fault("a box is copied to an address that is no multiple of 128", CALLER);
    if (fenced[barrier.made_by] < barrier.made_at) fault("mbarrier that the async proxy may not see yet", CALLER);
    const unsigned bytes = copy.map.box[0] * copy.map.box[1] * copy.map.box[2] * copy.map.item;
    copy.target = shared_pointer(target, bytes, CALLER);
    // The agent knows what the thread knows that starts it; each copy is an access of its own.
    const int who = launch.threads + barrier.agent, self = emu_self()->index;
    clocks[who] = clocks[self];
    clocks[self][self]++;
    copy.tick = ++agent_ticks[barrier.agent];
    for (unsigned i = 0; i < bytes; i += 16) touch_async(copy.target + i, 16, EMU_WRITE, CALLER, barrier.agent);
    boxes.push_back(copy);
}
static void carry_out(const BoxCopy& copy) {
    const Map& map = copy.map;
    const unsigned row_bytes = map.box[0] * map.item;
    for (unsigned z = 0; z < map.box[2]; z++)
        for (unsigned y = 0; y < map.box[1]; y++)
            for (unsigned x = 0; x < map.box[0]; x++) {
                const int64_t at[3] = {(int64_t)copy.place[0] + x, (int64_t)copy.place[1] + y,
                                       (int64_t)copy.place[2] + z};
                bool inside = true;
                for (int i = 0; i < 3; i++) inside &= at[i] >= 0 && at[i] < (int64_t)map.sizes[i];
                const unsigned linear = copy.address + (z * map.box[1] + y) * row_bytes + x * map.item;
                char* to = copy.target + (swizzled(linear, map.swizzle) - copy.address);
                const char* from = (const char*)map.address + at[2] * map.steps[1] + at[1] * map.steps[0] +
                                   at[0] * map.item;
                if (inside) memcpy(to, from, map.item);
                else memset(to, 0, map.item);
            }
    Mbarrier& barrier = mbarriers[copy.barrier];
    const int who = launch.threads + barrier.agent;
    barrier.arriving.resize(launch.threads + AGENTS, 0);
    barrier.arriving[who] = std::max(barrier.arriving[who], copy.tick);
    barrier.bytes -= map.box[0] * map.box[1] * map.box[2] * map.item;
    end_phase(barrier);
}
bool copy_one_box() {
    if (boxes.empty()) return false;
    const size_t which = random_number() % boxes.size();
    const BoxCopy copy = boxes[which];
    boxes.erase(boxes.begin() + which);
    carry_out(copy);
    return true;
}
