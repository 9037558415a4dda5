// The memory a kernel sees: every buffer stands alone between gaps that may not be touched, so a stray index faults or
// is named.
#include <sys/mman.h>
#include <cstdlib>
#include <cstring>
#include "state.h"

static const size_t GAP = 1ul << 30, PAGE = 4096;
struct Buffer {
    char* mapping;
    size_t mapped;
};
struct SharedArray {
    char* data;
    size_t bytes;
};
static std::vector<Buffer> buffers;
static std::vector<SharedArray> shared_arrays;
static char* dynamic_shared;

static void* map_lazily(size_t bytes, int protection) {
    void* p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    return p;
}
// The end of the buffer lies at the gap, as close as an alignment of 16 allows.
extern "C" void* emu_allocate(size_t bytes) {
    size_t pages = (bytes + PAGE - 1) / PAGE * PAGE, mapped = pages + 2 * GAP;
    char* mapping = (char*)map_lazily(mapped, PROT_NONE);
    mprotect(mapping + GAP, pages, PROT_READ | PROT_WRITE);
    buffers.push_back({mapping, mapped});
    return mapping + GAP + (pages - (bytes + 15) / 16 * 16);
}
static void add_region(char* data, size_t bytes, unsigned granule, bool readonly, bool shared, bool uninitialized,
                       const char* name) {
    Region region{(uintptr_t)data, (uintptr_t)data + bytes, granule, readonly, shared, uninitialized, nullptr, 0, name};
#ifdef EMU_CHECK
    if (!readonly) {
        region.granules = bytes / granule + 2;
        region.shadow = (Shadow*)map_lazily(region.granules * sizeof(Shadow), PROT_READ | PROT_WRITE);
    }
#endif
    regions.push_back(region);
}
extern "C" void emu_region(void* data, size_t bytes, int granule, int readonly, int uninitialized, const char* name) {
    add_region((char*)data, bytes, granule, readonly, false, uninitialized, name);
}
extern "C" void emu_free_all() {
    for (auto& buffer : buffers) munmap(buffer.mapping, buffer.mapped);
    for (auto& region : regions)
        if (region.shadow) munmap(region.shadow, region.granules * sizeof(Shadow));
    buffers.clear();
    regions.clear();
    forget_shared_memory();
}
// All ones: a float read before it is written is NaN.
extern "C" void* emu_shared(int id, size_t bytes, unsigned granule, const char* name) {
    if ((int)shared_arrays.size() <= id) shared_arrays.resize(id + 1, SharedArray{nullptr, 0});
    SharedArray& array = shared_arrays[id];
    if (!array.data) {
        array = {(char*)emu_allocate(bytes), bytes};
        memset(array.data, 0xff, bytes);
        add_region(array.data, bytes, granule, false, true, true, name);
    }
    return array.data;
}
extern "C" void* emu_dynamic_shared(unsigned granule) {
    if (!dynamic_shared) {
        dynamic_shared = (char*)emu_allocate(launch.dynamic_bytes ? launch.dynamic_bytes : 1);
        memset(dynamic_shared, 0xff, launch.dynamic_bytes);
        // A granule of 2: halves may lie beside floats in it.
        add_region(dynamic_shared, launch.dynamic_bytes, granule < 2 ? granule : 2, false, true, true,
                   "dynamic shared");
    }
    return dynamic_shared;
}
// Addresses of dynamic shared memory begin at a multiple of 16 only, as on a GPU.
static const unsigned FIRST_ADDRESS = 0x410;
extern "C" unsigned emu_shared_address(const void* place) {
    const size_t offset = (const char*)place - (dynamic_shared ? dynamic_shared : (const char*)place + 1);
    if (offset > launch.dynamic_bytes) emu_fail("address outside of dynamic shared memory");
    return FIRST_ADDRESS + (unsigned)offset;
}
char* shared_pointer(unsigned address, unsigned bytes, void* code) {
    if (!dynamic_shared || address < FIRST_ADDRESS || address + bytes > FIRST_ADDRESS + launch.dynamic_bytes) {
        report("access outside of dynamic shared memory", std::to_string(address - FIRST_ADDRESS), code_offset(code),
               0, emu_self()->index);
        stop_launch();
    }
    return dynamic_shared + (address - FIRST_ADDRESS);
}
void reset_shared_memory() {
    for (auto& array : shared_arrays)
        if (array.data) memset(array.data, 0xff, array.bytes);
    if (dynamic_shared) memset(dynamic_shared, 0xff, launch.dynamic_bytes);
}
void forget_shared_memory() {
    shared_arrays.clear();
    dynamic_shared = nullptr;
}
size_t static_shared_bytes() {
    size_t bytes = 0;
    for (auto& array : shared_arrays) bytes += array.bytes;
    return bytes;
}
