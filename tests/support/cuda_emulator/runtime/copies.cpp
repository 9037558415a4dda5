// Copies that don't wait (cp.async): what a thread starts arrives no sooner than when it waits for it, so a kernel that
// forgets to wait reads what was there before. To the checks the target is written twice, at the start and at the end:
// between them no thread may access it.
#include <cstring>
#include "state.h"

struct Copy {
    void* to;
    const void* from;
    unsigned bytes;
};
struct Copies {
    std::vector<Copy> open;                // not yet in a group
    std::deque<std::vector<Copy>> groups;  // under way, the oldest first
};
static std::vector<Copies> copies;  // of each thread of the block

void forget_copies() { copies.assign(launch.threads, Copies()); }

extern "C" void emu_copy_later(void* to, const void* from, unsigned bytes) {
    void* code = __builtin_return_address(0);
    emu_touch(from, bytes, EMU_READ, code);
    emu_touch(to, bytes, EMU_WRITE, code);
    copies[emu_self()->index].open.push_back({to, from, bytes});
}
extern "C" void emu_close_copies() {
    Copies& own = copies[emu_self()->index];
    own.groups.push_back(own.open);
    own.open.clear();
}
extern "C" void emu_await_copies(int pending) {
    Copies& own = copies[emu_self()->index];
    while ((int)own.groups.size() > pending) {
        for (const Copy& copy : own.groups.front()) {
            emu_touch(copy.to, copy.bytes, EMU_WRITE, __builtin_return_address(0));
            memcpy(copy.to, copy.from, copy.bytes);
        }
        own.groups.pop_front();
    }
}
