// Who knows of whom: a vector clock for each thread, so that races are found where threads order each other by
// mbarriers and named barriers, of which not all take part. A thread's own entry counts its releases; it knows of
// another thread's access if its entry for that thread has reached the other's clock at the access. Copies of the
// tensor memory accelerator are the accesses of an agent, one for each barrier, which only those know of who waited at
// the barrier.
#include <algorithm>
#include "state.h"

bool clocks_run;
std::vector<Clock> clocks;
std::vector<uint32_t> fenced;
uint32_t agent_ticks[AGENTS];

void stop_clocks() {
    clocks_run = false;
    fenced.assign(launch.threads + AGENTS, 0);
}
void start_clocks() {
    if (clocks_run) return;
    clocks_run = true;
    std::fill(agent_ticks, agent_ticks + AGENTS, 0);
    const int count = launch.threads + AGENTS;
    clocks.assign(count, Clock(count, 0));
    for (int i = 0; i < count; i++) clocks[i][i] = 1;
}
static void join(Clock& into, const Clock& other) {
    if (into.size() < other.size()) into.resize(other.size(), 0);
    for (size_t i = 0; i < other.size(); i++) into[i] = std::max(into[i], other[i]);
}
void release_to(Clock& target, int who) {
    join(target, clocks[who]);
    clocks[who][who]++;
}
void acquire_from(const Clock& source, int who) { join(clocks[who], source); }
void meet(const std::vector<int>& threads) {
    if (!clocks_run) return;
    Clock all;
    for (int thread : threads) release_to(all, thread);
    for (int thread : threads) acquire_from(all, thread);
}
extern "C" void emu_fence_async() {
    start_clocks();
    const int self = emu_self()->index;
    fenced[self] = clocks[self][self]++;
}
