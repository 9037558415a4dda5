// The faults of a launch: noted, counted by place, and told to Python.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include "state.h"

std::vector<Fault> faults;

void report(const char* kind, const std::string& where, uint32_t code, uint32_t other_code, int thread) {
    for (auto& fault : faults)
        if (fault.code == code && fault.other_code == other_code && fault.kind == kind) {
            fault.times++;
            return;
        }
    faults.push_back({kind, where, code, other_code, launch.block, thread < 0 ? 0u : (unsigned)thread, 1});
}
void stop_launch() {
    launch.aborted = true;
    wait_for_others(DONE, 0);
    abort();  // a stopped fibre is never resumed
}
extern "C" void emu_fail(const char* kind) {
    report(kind, "", code_offset(__builtin_return_address(0)), 0, emu_self()->index);
}

void report_deadlock() {
    int at_barrier = 0, at_warp = 0, at_mbarrier = 0, others = 0;
    uint32_t barrier_code = 0, warp_code = 0, other_code = 0;
    for (int i = 0; i < launch.threads; i++) {
        if (fibre(i)->state == AT_BARRIER) {
            at_barrier++;
            barrier_code = fibre(i)->waits_at;
        }
        if (fibre(i)->state == AT_WARP) {
            at_warp++;
            warp_code = fibre(i)->waits_at;
        }
        if (fibre(i)->state == AT_MBARRIER) at_mbarrier++, other_code = fibre(i)->waits_at;
        if (fibre(i)->state == AT_NAMED_BARRIER || fibre(i)->state == AT_PRODUCTS)
            others++, other_code = fibre(i)->waits_at;
    }
    char text[160];
    snprintf(text, sizeof text,
             "%d threads at __syncthreads, %d at a warp intrinsic, %d at an mbarrier, %d at others, %d exited",
             at_barrier, at_warp, at_mbarrier, others, launch.threads - launch.alive);
    warp_code = warp_code ? warp_code : other_code;
    report("deadlock", text, at_barrier ? barrier_code : warp_code, at_barrier ? warp_code : 0);
    launch.aborted = true;
}

extern "C" void emu_fault(int i, char* kind, char* where, unsigned* numbers) {
    const Fault& fault = faults[i];
    snprintf(kind, 200, "%s", fault.kind.c_str());
    snprintf(where, 200, "%s", fault.where.c_str());
    numbers[0] = fault.code;
    numbers[1] = fault.other_code;
    numbers[2] = fault.block;
    numbers[3] = fault.thread;
    numbers[4] = (unsigned)std::min<uint64_t>(fault.times, 0xffffffffu);
}
