// Attention of heads of 64 numbers for compute capability 9.0 (H100, H200): products of warp groups and copies by the
// tensor memory accelerator. The same function as attention_half of attention.cu, which runs everywhere else.
//
// query (B, M, D), key and value (B, N, D) are read through tensor maps, where they lie in a fused (B, N, 3D) product;
// out (B, M, D). A block computes 128 queries of one head; grid (queries / 128, heads, images).
//
//   producer   the last warp, of which one thread starts copies: the queries, then tiles of 128 keys and 128 values
//              into two rings of STAGES tiles. It waits until all consumers have left a tile ("empty"), and the copy
//              itself reports its arrival ("full").
//   consumers  two warp groups with 64 queries each. Scores are a product of two tiles in shared memory; probabilities
//              stay in registers, whose layout as a result is the layout of a left operand, and are multiplied with
//              values in shared memory.
//
// A row of 64 numbers is 128 bytes, the width of the widest swizzle: the accelerator permutes the eight chunks of 16
// bytes of a row by the row number modulo 8, and wgmma undoes it. Tiles are aligned to 1024 bytes, where the pattern
// starts anew. The product of tile t+1 with the queries and that of tile t with its probabilities are under way
// together, and the softmax of t+1 runs beside the latter. The groups take turns to start products, so that one
// computes its softmax while the tensor cores work for the other ("ping-pong" of FlashAttention-3, Shah et al. 2024).
// Rows of keys and values past the end arrive as zeros; their scores are replaced in the last tile. The softmax is
// that of attention.cu: a maximum and a sum of powers of two in float32 for each row, and outputs rescaled only when a
// maximum has grown by more than 2^8.
//
// With ROTARY defined, the consumers rotate their queries in shared memory before the first product.
// With BFLOAT16 defined the 16-bit numbers are bfloat16.
//
// Not yet run on a GPU. On paper, for 128 queries and 128 keys on a multiprocessor: 1024 clocks for the products at the
// peak rate, 1024 for exponentials (16 per clock), 830 for issuing instructions (414 per warp and tile in the machine
// code), 640 for reading shared memory: 490 TFLOP/s on an H100 or H200 if products and exponentials took turns, 980 if
// they overlapped completely. 160 registers per thread and 145 KB of shared memory: one block of nine warps per
// multiprocessor, which could have 224 registers, so that none need to be handed from the producer to the consumers.

#define SIZE 64        // numbers in a head
#define ROWS 128       // queries in a block, and keys in a tile
#define STAGES 4       // tiles of keys, and tiles of values, in shared memory
#define CONSUMERS 256  // threads
#define WARPS (CONSUMERS / 32)
#define TILE (ROWS * SIZE * 2)  // bytes
#define LOWEST (-1e30f)         // instead of minus infinity, because the difference of two of them must not be NaN
#define SLACK 8.0f              // probabilities may temporarily be 2^8 times too large without overflowing a half

#include "hopper.cuh"
#include "half_words.cuh"

// Numbers of named barriers, for each group.
#define OWN 1   // its four warps meet
#define TURN 3  // it may start products

// Places in shared memory, in bytes after the first multiple of 1024.
#define QUERIES_AT 0
#define KEYS_AT TILE
#define VALUES_AT (KEYS_AT + STAGES * TILE)
#define BARRIERS_AT (VALUES_AT + STAGES * TILE)
enum Barrier {
    QUERIES_FULL,
    KEYS_FULL,
    KEYS_EMPTY = KEYS_FULL + STAGES,
    VALUES_FULL = KEYS_EMPTY + STAGES,
    VALUES_EMPTY = VALUES_FULL + STAGES,
};

// A matrix of rows of 128 swizzled bytes in shared memory, as wgmma wants it described: address and distances in units
// of 16 bytes, the distance of groups of eight rows (1024 bytes) from bit 32 on, and in the last bits the swizzle.
// The other distance, from bit 16 on, is that of columns beyond the 64th, of which there are none.
__device__ __forceinline__ unsigned long long matrix_at(unsigned place) {
    return (unsigned long long)(place >> 4) | 1ull << 16 | (unsigned long long)(1024 >> 4) << 32 | 1ull << 62;
}
// The same matrix, some bytes further.
__device__ __forceinline__ unsigned long long further(unsigned long long matrix, int bytes) {
    return matrix + (bytes >> 4);
}
// Where a chunk of eight numbers of a row stands in a tile.
__device__ __forceinline__ int chunk_at(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

__device__ __forceinline__ void produce(const TensorMap* query, const TensorMap* key, const TensorMap* value,
                                        unsigned room, unsigned barriers, int keys) {
    const int column = blockIdx.y * SIZE, image = blockIdx.z;
    barrier_expect(barriers + 8 * QUERIES_FULL, TILE);
    copy_box(room + QUERIES_AT, query, column, blockIdx.x * ROWS, image, barriers + 8 * QUERIES_FULL);
    for (int tile = 0; tile * ROWS < keys; tile++) {
        const int stage = tile % STAGES, before = (tile / STAGES & 1) ^ 1;  // parity of the phase in which it was left
        const unsigned keys_full = barriers + 8 * (KEYS_FULL + stage);
        const unsigned values_full = barriers + 8 * (VALUES_FULL + stage);
        barrier_wait(barriers + 8 * (KEYS_EMPTY + stage), before);
        barrier_expect(keys_full, TILE);
        copy_box(room + KEYS_AT + stage * TILE, key, column, tile * ROWS, image, keys_full);
        barrier_wait(barriers + 8 * (VALUES_EMPTY + stage), before);
        barrier_expect(values_full, TILE);
        copy_box(room + VALUES_AT + stage * TILE, value, column, tile * ROWS, image, values_full);
    }
}

// Rotate the 64 queries of a warp group; numbers i and i + 32 of a row are the coordinates of a point. A thread takes
// two chunks of the first coordinates of a row, and the two of the second coordinates.
__device__ __forceinline__ void rotate_queries(unsigned char* tile, const float* rotation, int first, int queries) {
    const int row = (threadIdx.x & 127) >> 1;
    if (first + row >= queries) return;
#pragma unroll
    for (int chunk = 2 * (threadIdx.x & 1), i = 0; i < 2; i++, chunk++) {
        uint4* x_at = reinterpret_cast<uint4*>(tile + chunk_at(row, chunk));
        uint4* y_at = reinterpret_cast<uint4*>(tile + chunk_at(row, chunk + 4));
        const uint4 x = *x_at, y = *y_at;
        const unsigned xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
        unsigned new_x[4], new_y[4];
        const float* cosine = rotation + (long long)(first + row) * SIZE + chunk * 8;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 c = *reinterpret_cast<const float2*>(cosine + 2 * j);
            const float2 s = *reinterpret_cast<const float2*>(cosine + SIZE / 2 + 2 * j);
            const float2 a = unpack_pair(xs[j]), b = unpack_pair(ys[j]);
            new_x[j] = pack(a.x * c.x - b.x * s.x, a.y * c.y - b.y * s.y);
            new_y[j] = pack(b.x * c.x + a.x * s.x, b.y * c.y + a.y * s.y);
        }
        *x_at = make_uint4(new_x[0], new_x[1], new_x[2], new_x[3]);
        *y_at = make_uint4(new_y[0], new_y[1], new_y[2], new_y[3]);
    }
}

__device__ __forceinline__ void await_keys(unsigned barriers, int tile) {
    barrier_wait(barriers + 8 * (KEYS_FULL + tile % STAGES), tile / STAGES & 1);
}
// Start the product of a warp group's queries with a tile of keys, which has arrived.
__device__ __forceinline__ void
start_scores(float (&score)[64], unsigned long long queries, unsigned room, int tile) {
    const unsigned long long keys = matrix_at(room + KEYS_AT + tile % STAGES * TILE);
    products_fence();
#pragma unroll
    for (int d = 0; d < 4; d++)  // sixteen numbers of a head at a time
        multiply_shared(score, further(queries, d * 32), further(keys, d * 32), d > 0);
    products_commit();
}
// Start to add the product of probabilities with a tile of values to the outputs.
__device__ __forceinline__ void start_outputs(float (&output)[32], const unsigned (&weight)[32], unsigned room,
                                              unsigned barriers, int tile) {
    const int stage = tile % STAGES;
    const unsigned long long values = matrix_at(room + VALUES_AT + stage * TILE);
    barrier_wait(barriers + 8 * (VALUES_FULL + stage), tile / STAGES & 1);
    products_fence();
#pragma unroll
    for (int k = 0; k < 8; k++)  // sixteen keys at a time
        multiply_registers(output, weight + 4 * k, further(values, k * 16 * 128), 1);
    products_commit();
}
__device__ __forceinline__ void pack_all(unsigned (&weight)[32], const float (&score)[64]) {
#pragma unroll
    for (int i = 0; i < 32; i++) weight[i] = pack(score[2 * i], score[2 * i + 1]);
}

// The softmax of a thread's two rows, row lane / 4 and eight further, so far.
struct Softmax {
    float largest[2], sum[2], shrink[2];
    bool grown;  // in this warp, by so much that outputs have to be rescaled

    // Turns the scores of a tile into probabilities. Numbers 4 i + 2 r and 4 i + 2 r + 1 of a thread are columns
    // 8 i + 2 (lane % 4) and the next of its row r.
    __device__ __forceinline__ void update(float (&score)[64], float scale, int left) {
        if (left < ROWS) {
#pragma unroll
            for (int i = 0; i < 64; i++)
                if ((i >> 2) * 8 + 2 * (threadIdx.x & 3) + (i & 1) >= left) score[i] = LOWEST;
        }
        float most[2];
        bool more = false;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float x = largest[r];
#pragma unroll
            for (int i = 0; i < 16; i++) x = fmaxf(x, fmaxf(score[4 * i + 2 * r], score[4 * i + 2 * r + 1]));
            // A row of scores is distributed over four consecutive lanes.
            x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
            x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
            more |= (x - largest[r]) * scale > SLACK;
            most[r] = x;
        }
        grown = __any_sync(0xffffffffu, more);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            shrink[r] = grown ? power_of_two((largest[r] - most[r]) * scale) : 1.0f;
            if (grown) largest[r] = most[r];
            sum[r] *= shrink[r];
            const float shift = largest[r] * scale;
#pragma unroll
            for (int i = 0; i < 16; i++) {
                float &first = score[4 * i + 2 * r], &second = score[4 * i + 2 * r + 1];
                first = power_of_two(first * scale - shift);
                second = power_of_two(second * scale - shift);
                sum[r] += first + second;
            }
        }
    }
    __device__ __forceinline__ void rescale(float (&output)[32]) {
        if (!grown) return;
#pragma unroll
        for (int i = 0; i < 32; i++) output[i] *= shrink[i >> 1 & 1];
    }
};

extern "C" __global__ void __launch_bounds__(CONSUMERS + 32, 1)
attention_wgmma(const __grid_constant__ TensorMap query, const __grid_constant__ TensorMap key,
                const __grid_constant__ TensorMap value, unsigned short* __restrict__ out, int queries, int keys,
                float scale, const float* __restrict__ rotation) {
    extern __shared__ uint4 memory[];
    const unsigned start = shared_address(memory), room = (start + 1023) / 1024 * 1024, barriers = room + BARRIERS_AT;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    if (threadIdx.x == 0) {
        barrier_init(barriers + 8 * QUERIES_FULL, 1);
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_init(barriers + 8 * (KEYS_FULL + stage), 1);
            barrier_init(barriers + 8 * (KEYS_EMPTY + stage), WARPS);
            barrier_init(barriers + 8 * (VALUES_FULL + stage), 1);
            barrier_init(barriers + 8 * (VALUES_EMPTY + stage), WARPS);
        }
        fence_async();
    }
    __syncthreads();  // the barriers have been initialized
    if (warp == WARPS) {
        if (lane == 0) produce(&query, &key, &value, room, barriers, keys);
        return;
    }

    const int group = warp >> 2, first = blockIdx.x * ROWS + group * 64;
    unsigned char* tile = reinterpret_cast<unsigned char*>(memory) + (room - start) + QUERIES_AT + group * (TILE / 2);
    barrier_wait(barriers + 8 * QUERIES_FULL, 0);
#ifdef ROTARY
    rotate_queries(tile, rotation, first, queries);
    fence_async();
    named_barrier(OWN + group, 128);  // the group's queries have been rotated
#endif

    const unsigned long long left = matrix_at(room + QUERIES_AT + group * (TILE / 2));
    float score[64], output[32];
    unsigned weight[32];  // probabilities
    Softmax softmax = {{LOWEST, LOWEST}, {0.0f, 0.0f}, {1.0f, 1.0f}, false};
#pragma unroll
    for (int i = 0; i < 32; i++) output[i] = 0.0f;

    await_keys(barriers, 0);
    start_scores(score, left, room, 0);
    products_wait(0);
    settled(score);
    if (lane == 0) barrier_arrive(barriers + 8 * KEYS_EMPTY);
    softmax.update(score, scale, keys);
    pack_all(weight, score);
    if (ROWS < keys) await_keys(barriers, 1);
    if (group == 1 && ROWS < keys) named_arrive(TURN, CONSUMERS);  // the other group begins
    int done = 0;  // tiles whose values have been multiplied, or are being
    for (int start_key = ROWS; start_key < keys; start_key += ROWS, done++) {
        named_barrier(TURN + group, CONSUMERS);  // it is this group's turn
        start_scores(score, left, room, done + 1);
        start_outputs(output, weight, room, barriers, done);
        if (group == 0 || start_key + ROWS < keys) named_arrive(TURN + (group ^ 1), CONSUMERS);
        products_wait(1);  // the scores have been computed
        settled(score);
        if (lane == 0) barrier_arrive(barriers + 8 * (KEYS_EMPTY + (done + 1) % STAGES));
        softmax.update(score, scale, keys - start_key);
        // Here because of its branch, past which the compiler does not move the wait for the outputs: without it, the
        // machine code waits before the exponentials, which then run beside nothing.
        if (start_key + ROWS < keys) await_keys(barriers, done + 2);
        products_wait(0);  // the outputs have been computed
        settled(output);
        settled(weight);
        if (lane == 0) barrier_arrive(barriers + 8 * (VALUES_EMPTY + done % STAGES));
        softmax.rescale(output);
        pack_all(weight, score);
    }
    start_outputs(output, weight, room, barriers, done);
    products_wait(0);  // all products have been computed
    settled(output);

    // Write the output through the warp's own rows of the queries' tile, so that whole rows go to global memory.
    named_barrier(OWN + group, 128);  // the group's queries are not needed any more
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float total = softmax.sum[r];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        const float share = 1.0f / total;
        const int row = (warp & 3) * 16 + r * 8 + (lane >> 2);
#pragma unroll
        for (int i = 0; i < 8; i++)
            *reinterpret_cast<unsigned*>(tile + chunk_at(row, i) + 4 * (lane & 3)) =
                pack(output[4 * i + 2 * r] * share, output[4 * i + 2 * r + 1] * share);
    }
    __syncwarp();  // the warp's rows are complete
    const long long width = (long long)gridDim.y * SIZE;
    out += blockIdx.z * queries * width + blockIdx.y * SIZE;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = (warp & 3) * 16 + i * 4 + (lane >> 3), chunk = lane & 7;
        if (first + row < queries)
            *reinterpret_cast<uint4*>(out + (first + row) * width + chunk * 8) =
                *reinterpret_cast<const uint4*>(tile + chunk_at(row, chunk));
    }
}
