// Products of warp groups (wgmma), written from the PTX ISA: "Matrix fragments for wgmma.mma_async.m64nNk16", "Matrix
// descriptor format" and "Canonical layouts". Nothing is computed before a thread waits for it. Until then the
// registers of sums hold NaN and may not be touched, those of left operands may not be changed, and shared memory
// counts as read when the product is started and again when it ends.
#include <cmath>
#include <cstring>
#include <map>
#include "state.h"
#include "../include/half.h"
#include "../include/hopper.h"

static const int GROUP = 128, ROWS = 64, DEPTH = 16, LANES = 32;
struct Product {
    int line, n, bfloat16, scale_d, transpose_left, transpose_right, arrived = 0;
    bool from_registers, computed = false;
    uint64_t left, right;
    float* sums[GROUP];
    const unsigned* registers[GROUP];
    unsigned operand[GROUP][4];        // the left operand's registers when the product was started
    int before[GROUP];                 // the product that these sums come from, or -1: from `start`
    std::vector<float> start[GROUP], result[GROUP];
};
struct Thread {
    size_t started = 0, ended = 0;
    bool fence = false;
    std::deque<size_t> groups;         // how many products had been started when each group was closed
    std::map<float*, int> sums;        // under way, and the last product that adds to them
};
struct WarpGroup {
    std::deque<Product> products;      // a deque, because growing it moves nothing
    Thread threads[GROUP];
};
static std::map<int, WarpGroup> groups;

void forget_products() { groups.clear(); }
void end_products() {
    for (auto& group : groups)
        for (const Thread& thread : group.second.threads)
            if (!thread.sums.empty()) return report("products were under way when their block ended", "", 0);
}
#define CALLER __builtin_return_address(0)
static WarpGroup& own_group() { return groups[emu_self()->index / GROUP]; }
static Thread& own_thread() { return own_group().threads[emu_self()->index % GROUP]; }

// Address in shared memory of element (row, k) of an operand; row is that of the left operand, or the column of the
// right one. All distances are in bytes, `wide` is the length of a swizzled row.
static unsigned element(uint64_t matrix, int row, int k, bool transposed) {
    const unsigned start = (matrix & 0x3fff) << 4, leading = (matrix >> 16 & 0x3fff) << 4;
    const unsigned stride = (matrix >> 32 & 0x3fff) << 4, mode = matrix >> 62;
    const unsigned wide = mode == 1 ? 128 : mode == 2 ? 64 : mode == 3 ? 32 : 16;
    unsigned address = start;
    if (mode == 0 && transposed)
        address += row % 8 * 2 + row / 8 * stride + k % 8 * 16 + k / 8 * leading;
    else if (mode == 0)
        address += row % 8 * 16 + row / 8 * stride + k % 8 * 2 + k / 8 * leading;
    else if (transposed)
        address += row * 2 % wide + row * 2 / wide * leading + k % 8 * wide + k / 8 * stride;
    else
        address += row % 8 * wide + row / 8 * stride + k * 2;
    return address ^ (address >> 3 & (wide - 16));
}
static float number(const void* place, int bfloat16) {
    unsigned short bits;
    memcpy(&bits, place, 2);
    return bfloat16 ? emu_bits<unsigned, float>((unsigned)bits << 16) : __half2float(__ushort_as_half(bits));
}
// One thread of each warp stands for the reads of its warp.
static void touch(const Product& product, void* code) {
    if (emu_self()->lane) return;
    const auto read = [&](uint64_t matrix, int rows, bool transposed) {
        const unsigned mode = matrix >> 62, repeats = mode == 1 ? 7 : mode == 2 ? 3 : mode == 3 ? 1 : 0;
        if (matrix >> 49 & 7 || ((matrix & 0x3fff) << 4 >> 7 & repeats))
            fault("a matrix that does not begin where its swizzle does, or with a base offset", code);
        for (int row = 0; row < rows; row += transposed ? 8 : 1)
            for (int k = 0; k < DEPTH; k += transposed ? 1 : 8)
                touch_async(shared_pointer(element(matrix, row, k, transposed), 16, code), 16, EMU_READ, code);
    };
    if (!product.from_registers) read(product.left, ROWS, product.transpose_left);
    read(product.right, product.n, product.transpose_right);
}
// Result i of a thread stands in this row and column: of each 8 columns, two in each of two rows.
static int row_of(int thread, int i) { return thread / LANES * 16 + thread % LANES / 4 + i / 2 % 2 * 8; }
static int column_of(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

static void compute(WarpGroup& group, Product& product, void* code) {
    static float left[ROWS][DEPTH], right[DEPTH][256];
    for (int thread = 0; thread < GROUP && product.from_registers; thread++)
        for (int i = 0; i < 8; i++)  // 16-bit numbers: two rows, eight columns apart twice
            left[thread / LANES * 16 + thread % LANES / 4 + i / 2 % 2 * 8][thread % 4 * 2 + i % 2 + i / 4 * 8] =
                number((const char*)product.operand[thread] + 2 * i, product.bfloat16);
    for (int row = 0; row < ROWS && !product.from_registers; row++)
        for (int k = 0; k < DEPTH; k++)
            left[row][k] = number(shared_pointer(element(product.left, row, k, product.transpose_left), 2, code),
                                  product.bfloat16);
    for (int column = 0; column < product.n; column++)
        for (int k = 0; k < DEPTH; k++)
            right[k][column] = number(
                shared_pointer(element(product.right, column, k, product.transpose_right), 2, code), product.bfloat16);
    for (int thread = 0; thread < GROUP; thread++) {
        const int before = product.before[thread];
        const std::vector<float>& start = before < 0 ? product.start[thread] : group.products[before].result[thread];
        product.result[thread].resize(product.n / 2);
        for (int i = 0; i < product.n / 2; i++) {
            double sum = product.scale_d ? start[i] : 0.0;
            for (int k = 0; k < DEPTH; k++)
                sum += (double)left[row_of(thread, i)][k] * right[k][column_of(thread, i)];
            // A tensor core rounds towards zero.
            const float nearest = (float)sum;
            product.result[thread][i] = fabs((double)nearest) > fabs(sum) ? nextafterf(nearest, 0.f) : nearest;
        }
    }
    product.computed = true;
}

void emu_wgmma_fence() { own_thread().fence = true; }
void emu_wgmma_commit() { own_thread().groups.push_back(own_thread().started); }
void emu_wgmma(int line, int bfloat16, int n, float* sums, const unsigned* registers, unsigned long long left,
               unsigned long long right, int scale_d, int transpose_left, int transpose_right) {
    start_clocks();
    WarpGroup& group = own_group();
    Thread& own = own_thread();
    const int self = emu_self()->index % GROUP, index = (int)own.started++;
    if (index == (int)group.products.size()) {
        group.products.emplace_back();
        Product& fresh = group.products.back();
        fresh.line = line, fresh.bfloat16 = bfloat16, fresh.n = n, fresh.scale_d = scale_d;
        fresh.left = left, fresh.right = right, fresh.from_registers = registers;
        fresh.transpose_left = transpose_left, fresh.transpose_right = transpose_right;
    }
    Product& product = group.products[index];
    if (product.line != line || product.left != left || product.right != right || product.scale_d != scale_d)
        fault("threads of a warp group start different products", CALLER);
    if (!own.fence) fault("a product without a fence before it (wgmma.fence)", CALLER);
    product.sums[self] = sums;
    product.registers[self] = registers;
    if (registers) memcpy(product.operand[self], registers, sizeof product.operand[self]);
    const auto under_way = own.sums.find(sums);
    product.before[self] = under_way == own.sums.end() ? -1 : under_way->second;
    if (under_way == own.sums.end()) {
        product.start[self].assign(sums, sums + n / 2);
        for (int i = 0; i < n / 2; i++) sums[i] = NAN;
    }
    own.sums[sums] = index;
    touch(product, CALLER);
    if (++product.arrived == GROUP)
        for (int i = 0; i < GROUP; i++) {
            const int thread = emu_self()->index / GROUP * GROUP + i;
            if (thread < launch.threads && fibre(thread)->state == AT_PRODUCTS) wake(thread);
        }
}
void emu_wgmma_wait(int pending) {
    WarpGroup& group = own_group();
    Thread& own = own_thread();
    const int self = emu_self()->index % GROUP;
    own.fence = false;
    if ((int)own.groups.size() <= pending) return;
    while ((int)own.groups.size() > pending + 1) own.groups.pop_front();
    const size_t end = own.groups.front();
    own.groups.pop_front();
    for (; own.ended < end; own.ended++) {
        Product& product = group.products[own.ended];
        while (product.arrived < GROUP) wait_for_others(AT_PRODUCTS, code_offset(CALLER));
        touch(product, CALLER);
        if (!product.computed) compute(group, product, CALLER);
        if (product.from_registers && memcmp(product.operand[self], product.registers[self], 16))
            fault("an operand's register was changed while its product was under way", CALLER);
    }
    for (auto i = own.sums.begin(); i != own.sums.end();) {
        const auto [sums, last] = *i;
        if (last >= (int)end) {
            ++i;
            continue;
        }
        const std::vector<float>& result = group.products[last].result[self];
        for (size_t j = 0; j < result.size(); j++)
            if (!std::isnan(sums[j])) {
                fault("a sum's register was changed while its product was under way", CALLER);
                break;
            }
        memcpy(sums, result.data(), result.size() * sizeof(float));
        i = own.sums.erase(i);
    }
}
