// Scaled dot-product attention of several heads, softmax(q k^T / sqrt(S)) v, without ever storing the scores.
//
// query (B, M, D), key and value (B, N, D), out (B, M, D): heads concatenated, S = D / heads numbers each. Every array
// has its own row stride and image stride, in elements, so that q, k and v can be read from a fused (B, N, 3D) product
// without copies. The softmax is computed online (Milakov and Gimelshein 2018; Dao 2023, algorithm 1): while tiles of
// keys are processed one after the other, each row keeps the maximum of its scores so far, the sum of exponentials
// relative to this maximum, and the output scaled accordingly. Exponentials are powers of two, with log2(e) / sqrt(S)
// as a factor of a multiply-add.
//
// With ROTARY defined, rotation (M, S) float32 is the rotary position embedding of each query, as rotation.cu has it for
// keys: queries are rotated in registers on their way to the first product. Keys are rotated already. It is an option of
// the compiler, so that networks without it need no registers for it.
//
//   attention_half   S = 64, 16-bit numbers with float32 accumulation on tensor cores
//   attention_float  S = 64, float32 with plain multiply-adds
//   attention_any_*  any S, one warp per query: simple, not fast
//
// attention_half: a block of four warps processes 128 queries of one head; grid (queries / 128, heads, images), so that
// consecutive blocks share keys in the L2 cache. A warp processes 32 queries from the first product to the last: its
// queries, scores and outputs stay in registers in the layout of mma.m16n8k16, whose result has the layout that the
// next product needs for its left operand, so probabilities never go through shared memory. Each fragment of keys or
// values that is read from shared memory is used by two products: with 16 queries per warp, reading them would take as
// long as the products. Tiles of 64 keys and values are copied by cp.async, one tile ahead, into the other half of a
// double buffer: one barrier per tile. A row of 64 halves is 128 bytes, one word in each bank; its eight chunks of 16
// bytes are permuted by the row number modulo 8, so that neither the copies nor ldmatrix have bank conflicts. 48 KB of
// shared memory and at most 255 registers allow two blocks per multiprocessor. Only the last tile checks for keys past
// the end.
// Before sm_80 a product consists of two m16n8k8 and copies are synchronous; the algorithm is the same.
// With BFLOAT16 defined the 16-bit numbers are bfloat16 instead of IEEE halves (sm_80 and later).
//
// Version history. None has been timed on a GPU yet; these are counts and estimates for an H200.
//   1. wmma through shared memory, 64 queries per block, an experiment: scores, probabilities and outputs go through
//      shared memory in each tile, about 9 words per score. This limits it to well below 140 TFLOP/s.
//   2. Registers and mma.sync: about 1 word per score.
//   3. Outputs are rescaled only when a maximum has grown by more than 2^8 (as in FlashAttention-4), and addresses are
//      incremented instead of recomputed: in sm_90's machine code a tile takes a warp 556 instructions, not 754.
// On compute capability 9.0 attention_wgmma.cu takes the place of attention_half, once it has proved right there.
//
// A warp's tile of 32 x 64 scores takes 210 clocks of a multiprocessor for the products (at the 60 % of peak that
// mma.sync reaches on Hopper), 128 for shared memory, 128 for exponentials, 140 for issuing instructions: 205 TFLOP/s
// if nothing overlapped, 590 if everything did. Two blocks of four warps give each scheduler two warps to choose from;
// about 300 TFLOP/s are expected.

#include <cuda_fp16.h>

#define SIZE 64      // numbers in a head
#define QUERIES 128  // in a block
#define KEYS 64      // in a tile
#define THREADS 128
#define LOWEST (-1e30f)  // instead of minus infinity, because the difference of two of them must not be NaN
#define SLACK 8.0f       // probabilities may temporarily be 2^8 times too large without overflowing a half

#ifdef ROTARY
#define ROTATED true
#else
#define ROTATED false
#endif

#ifdef BFLOAT16
typedef unsigned short Half;
#else
typedef __half Half;
#endif

#include "half_words.cuh"
#include "attention_mma.cuh"

// Index of a chunk of eight numbers in a tile with permuted rows.
__device__ __forceinline__ int chunk_at(int row, int chunk) { return row * SIZE + ((chunk ^ (row & 7)) << 3); }

// Start copying `count` rows of which `rows` exist; the others become zeros, because uninitialized memory may contain
// NaN. `source` is this thread's chunk of its first row, and `step` the distance to its next row, 16 rows further.
template <int count>
__device__ __forceinline__ void fetch(Copies& copies, Half* tile, const Half* source, long long step, int rows) {
    const int row = threadIdx.x >> 3, chunk = threadIdx.x & 7;
#pragma unroll
    for (int i = 0; i < count / 16; i++)
        copies.copy(tile + chunk_at(row, chunk) + i * 16 * SIZE, source + i * step, row + i * 16 < rows);
}

// Rotate the queries of a warp, of which `first` is the first row. Numbers i and i + 32 of a row, the coordinates of a
// point, lie at the same place of the fragments d and d + 2 of the same lane.
__device__ __forceinline__ void
rotate_fragments(unsigned (&left)[2][4][4], const float* rotation, int first, int queries) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int d = 0; d < 2; d++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = first + half * 16 + (i & 1) * 8 + (lane >> 2);
                const int column = d * 16 + (i >> 1) * 8 + 2 * (lane & 3);
                if (row >= queries) continue;
                const float* cosine = rotation + (long long)row * SIZE + column;
                const float2 c = *reinterpret_cast<const float2*>(cosine);
                const float2 s = *reinterpret_cast<const float2*>(cosine + SIZE / 2);
                const float2 x = unpack_pair(left[half][d][i]), y = unpack_pair(left[half][d + 2][i]);
                left[half][d][i] = pack(x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y);
                left[half][d + 2][i] = pack(y.x * c.x + x.x * s.x, y.y * c.y + x.y * s.y);
            }
}

extern "C" __global__ void __launch_bounds__(128, 2)
attention_half(const Half* __restrict__ query, const Half* __restrict__ key, const Half* __restrict__ value,
               Half* __restrict__ out, int queries, int keys, long long query_row, long long query_image,
               long long key_row, long long key_image, long long value_row, long long value_image, float scale,
               const float* __restrict__ rotation) {
    __shared__ __align__(128) Half query_tile[QUERIES * SIZE];
    __shared__ __align__(128) Half key_tile[2 * KEYS * SIZE];
    __shared__ __align__(128) Half value_tile[2 * KEYS * SIZE];
    const int lane = threadIdx.x & 31, matrix = lane >> 3, first = blockIdx.x * QUERIES, mine = (threadIdx.x >> 5) * 32;
    const long long width = (long long)gridDim.y * SIZE;
    out += blockIdx.z * queries * width + blockIdx.y * SIZE;

    // From here on query, key and value point to what this thread copies next.
    const int copied = threadIdx.x >> 3, column = blockIdx.y * SIZE + (threadIdx.x & 7) * 8;
    query += blockIdx.z * query_image + (first + copied) * query_row + column;
    key += blockIdx.z * key_image + copied * key_row + column;
    value += blockIdx.z * value_image + copied * value_row + column;
    Copies copies;
    fetch<QUERIES>(copies, query_tile, query, 16 * query_row, queries - first);
    fetch<KEYS>(copies, key_tile, key, 16 * key_row, keys);
    fetch<KEYS>(copies, value_tile, value, 16 * value_row, keys);
    copies.wait();
    __syncthreads();  // the first tiles have arrived

    // Index that this lane reads in the first sixteen rows of a tile, for each group of sixteen columns. For queries
    // and values the lower bit of the matrix index selects rows, for keys it selects columns.
    int at[4], key_at[4];
#pragma unroll
    for (int d = 0; d < 4; d++) {
        at[d] = chunk_at((matrix & 1) * 8 + (lane & 7), 2 * d + (matrix >> 1));
        key_at[d] = chunk_at((matrix >> 1) * 8 + (lane & 7), 2 * d + (matrix & 1));
    }
    unsigned left[2][4][4];  // the warp's queries: two halves of 16, four times 16 columns
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int d = 0; d < 4; d++)
            load_matrices<false>(left[half][d], after(place_of(query_tile), (mine + half * 16) * SIZE + at[d]));
    if (ROTATED) rotate_fragments(left, rotation, first + mine, queries);

    float output[2][8][4] = {}, largest[2][2], sum[2][2];  // a lane sees rows lane / 4 and lane / 4 + 8 of each half
#pragma unroll
    for (int i = 0; i < 4; i++) largest[i >> 1][i & 1] = LOWEST, sum[i >> 1][i & 1] = 0.0f;

    for (int start = 0, buffer = 0; start < keys; start += KEYS, buffer ^= 1) {
        const Place now_keys = after(place_of(key_tile), buffer * KEYS * SIZE);
        const Place now_values = after(place_of(value_tile), buffer * KEYS * SIZE);
        if (start + KEYS < keys) {
            key += KEYS * key_row;
            value += KEYS * value_row;
            const int next = (buffer ^ 1) * KEYS * SIZE, left_over = keys - start - KEYS;
            fetch<KEYS>(copies, key_tile + next, key, 16 * key_row, left_over);
            fetch<KEYS>(copies, value_tile + next, value, 16 * value_row, left_over);
        }

        float score[2][8][4];
#pragma unroll
        for (int d = 0; d < 4; d++)
#pragma unroll
            for (int pair = 0; pair < 4; pair++) {  // sixteen keys at a time
                unsigned right[4];
                load_matrices<false>(right, after(now_keys, key_at[d] + pair * 16 * SIZE));
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    multiply(score[half][2 * pair], left[half][d], right[0], right[1], d > 0);
                    multiply(score[half][2 * pair + 1], left[half][d], right[2], right[3], d > 0);
                }
            }
        if (start + KEYS > keys) {
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (start + i * 8 + 2 * (lane & 3) + (j & 1) >= keys) score[0][i][j] = score[1][i][j] = LOWEST;
        }

        float most[2][2];
        bool grown = false;
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float x = largest[half][r];
#pragma unroll
                for (int i = 0; i < 8; i++) x = fmaxf(x, fmaxf(score[half][i][2 * r], score[half][i][2 * r + 1]));
                // A row of scores is distributed over four consecutive lanes.
                x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
                x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
                grown |= (x - largest[half][r]) * scale > SLACK;
                most[half][r] = x;
            }
        if (__any_sync(0xffffffffu, grown)) {
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float shrink = power_of_two((largest[half][r] - most[half][r]) * scale);
                    sum[half][r] *= shrink;
                    largest[half][r] = most[half][r];
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        output[half][i][2 * r] *= shrink;
                        output[half][i][2 * r + 1] *= shrink;
                    }
                }
        }
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float shift = largest[half][r] * scale;
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    score[half][i][2 * r] = power_of_two(score[half][i][2 * r] * scale - shift);
                    score[half][i][2 * r + 1] = power_of_two(score[half][i][2 * r + 1] * scale - shift);
                    sum[half][r] += score[half][i][2 * r] + score[half][i][2 * r + 1];
                }
            }

#pragma unroll
        for (int k = 0; k < 4; k++) {  // sixteen keys at a time
            unsigned weight[2][4];
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float (&four)[4] = score[half][2 * k + (i >> 1)];
                    weight[half][i] = pack(four[2 * (i & 1)], four[2 * (i & 1) + 1]);
                }
#pragma unroll
            for (int d = 0; d < 4; d++) {
                unsigned right[4];
                load_matrices<true>(right, after(now_values, at[d] + k * 16 * SIZE));
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    multiply(output[half][2 * d], weight[half], right[0], right[1], true);
                    multiply(output[half][2 * d + 1], weight[half], right[2], right[3], true);
                }
            }
        }
        copies.wait();    // for this thread's part of it
        __syncthreads();  // the next tile has arrived, and this one has been used
    }

    // Write the output through the warp's own rows of the query tile, which is not needed any more, so that whole rows
    // are written to global memory.
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float total = sum[half][r];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            float share = 1.0f / total;
            int row = mine + half * 16 + r * 8 + (lane >> 2);
#pragma unroll
            for (int i = 0; i < 8; i++)
                *reinterpret_cast<unsigned*>(query_tile + chunk_at(row, i) + 2 * (lane & 3)) =
                    pack(output[half][i][2 * r] * share, output[half][i][2 * r + 1] * share);
        }
    __syncwarp();  // the warp's rows are complete
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int row = mine + i * 4 + (lane >> 3), chunk = lane & 7;
        if (first + row < queries)
            *reinterpret_cast<uint4*>(out + (first + row) * width + chunk * 8) =
                *reinterpret_cast<const uint4*>(query_tile + chunk_at(row, chunk));
    }
}

#include "attention_float.cuh"
#include "attention_any.cuh"
