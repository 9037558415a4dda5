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

// ---- Instructions that C++ cannot express, each with a version in plain C++ (TWIN) for the emulator on a CPU

#if defined(__CUDACPU__)
#define TWIN 1
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define AMPERE 1
#endif

__device__ __forceinline__ float power_of_two(float x) {
#ifdef TWIN
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// Two floats as 16-bit numbers in one word, the first in the lower half.
__device__ __forceinline__ unsigned pack(float first, float second) {
#if defined(BFLOAT16) && defined(TWIN)
    unsigned a = __float_as_uint(first), b = __float_as_uint(second);
    return (a + 0x7fff + (a >> 16 & 1)) >> 16 | ((b + 0x7fff + (b >> 16 & 1)) & 0xffff0000);
#elif defined(BFLOAT16)
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
#else
    __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<unsigned*>(&pair);
#endif
}

// The two 16-bit numbers of a word as floats.
__device__ __forceinline__ float2 unpack_pair(unsigned word) {
#ifdef BFLOAT16
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000));
#else
    return __half22float2(*reinterpret_cast<__half2*>(&word));
#endif
}

#ifdef TWIN
inline float unpack(unsigned long long words, int i) {
    unsigned short bits = (unsigned short)(words >> 16 * i);
#ifdef BFLOAT16
    return __uint_as_float((unsigned)bits << 16);
#else
    __half value;
    memcpy(&value, &bits, 2);
    return __half2float(value);
#endif
}
#endif

// Asynchronous copies from global to shared memory, 16 bytes each. The CPU version copies as late as a GPU may do it:
// nothing arrives before wait().
struct Copies {
#ifdef TWIN
    uint4* to[32];
    const uint4* from[32];
    int count = 0;
#endif
    __device__ __forceinline__ void copy(Half* target, const Half* source, bool wanted) {
#if defined(TWIN)
        to[count] = reinterpret_cast<uint4*>(target);
        from[count++] = wanted ? reinterpret_cast<const uint4*>(source) : nullptr;
#elif defined(AMPERE)
        unsigned address = (unsigned)__cvta_generic_to_shared(target);
        int bytes = wanted ? 16 : 0;  // the rest of the 16 is filled with zeros
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source), "r"(bytes)
                     : "memory");
#else
        uint4 zeros = make_uint4(0, 0, 0, 0);
        *reinterpret_cast<uint4*>(target) = wanted ? *reinterpret_cast<const uint4*>(source) : zeros;
#endif
    }
    __device__ __forceinline__ void wait() {
#if defined(TWIN)
        for (int i = 0; i < count; i++) *to[i] = from[i] ? *from[i] : make_uint4(0, 0, 0, 0);
        count = 0;
#elif defined(AMPERE)
        asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    }
};

// An address in shared memory: 32 bits are enough, and the compiler can put constant offsets into the instruction.
#ifdef TWIN
typedef const Half* Place;
inline Place place_of(const Half* tile) { return tile; }
inline Place after(Place place, int numbers) { return place + numbers; }
#else
typedef unsigned Place;
__device__ __forceinline__ Place place_of(const Half* tile) { return (unsigned)__cvta_generic_to_shared(tile); }
__device__ __forceinline__ Place after(Place place, int numbers) { return place + 2 * numbers; }
#endif

// Load four 8 x 8 matrices of 16-bit numbers from shared memory: lane 8 i + r passes the address of row r of matrix i;
// each lane gets the pair of numbers at (lane / 4, 2 (lane % 4)) of every matrix, or with `transposed` of its
// transpose.
template <bool transposed>
__device__ __forceinline__ void load_matrices(unsigned (&word)[4], Place place) {
#ifdef TWIN
    const unsigned short* row = reinterpret_cast<const unsigned short*>(place);
    int lane = threadIdx.x & 31;
    for (int i = 0; i < 4; i++) {
        if (transposed) {
            const unsigned short* upper = __shfl_sync(0xffffffffu, row, 8 * i + 2 * (lane & 3));
            const unsigned short* lower = __shfl_sync(0xffffffffu, row, 8 * i + 2 * (lane & 3) + 1);
            word[i] = upper[lane >> 2] | (unsigned)lower[lane >> 2] << 16;
        } else {
            const unsigned short* mine = __shfl_sync(0xffffffffu, row, 8 * i + (lane >> 2));
            word[i] = mine[2 * (lane & 3)] | (unsigned)mine[2 * (lane & 3) + 1] << 16;
        }
    }
#else
    if (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                     : "r"(place)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                     : "r"(place)
                     : "memory");
#endif
}

// c (16 x 8) = a (16 x 16) b (16 x 8), plus c if `added`. With g = lane / 4 and p = 2 (lane % 4), a lane has the
// following numbers. Of a: the pairs of columns from p in rows g and g + 8, then those from p + 8. Of b: the pairs of
// rows from p and from p + 8 in column g. Of c: columns p and p + 1 of row g, then of row g + 8.
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bool added) {
#if defined(TWIN)
    int lane = threadIdx.x & 31, group = lane & ~3, column = 2 * (lane & 3);
    unsigned long long low = a[0] | (unsigned long long)a[2] << 32, high = a[1] | (unsigned long long)a[3] << 32;
    unsigned long long right = b0 | (unsigned long long)b1 << 32;
    for (int i = 0; i < 4 && !added; i++) c[i] = 0.0f;
    for (int i = 0; i < 4; i++) {
        unsigned long long upper = __shfl_sync(0xffffffffu, low, group + i);
        unsigned long long lower = __shfl_sync(0xffffffffu, high, group + i);
        unsigned long long first = __shfl_sync(0xffffffffu, right, 4 * column + i);
        unsigned long long second = __shfl_sync(0xffffffffu, right, 4 * (column + 1) + i);
        for (int j = 0; j < 4; j++) {
            c[0] += unpack(upper, j) * unpack(first, j);
            c[1] += unpack(upper, j) * unpack(second, j);
            c[2] += unpack(lower, j) * unpack(first, j);
            c[3] += unpack(lower, j) * unpack(second, j);
        }
    }
#else
    // A constant zero costs the tensor cores nothing; registers full of zeros would have to be filled.
    float c0 = added ? c[0] : 0.0f, c1 = added ? c[1] : 0.0f, c2 = added ? c[2] : 0.0f, c3 = added ? c[3] : 0.0f;
#if defined(AMPERE)
#ifdef BFLOAT16
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#endif
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
#else
    asm("{.reg .f32 x0, x1, x2, x3;"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {x0, x1, x2, x3}, {%4, %5}, {%8}, {%10, %11, %12, %13};"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%6, %7}, {%9}, {x0, x1, x2, x3};}"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
#endif
#endif
}

// ---- Tensor cores, 64 numbers a head -------------------------------------------------------------

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

// ---- float32, 64 numbers a head ------------------------------------------------------------------
//
// A block processes 64 queries of one head and tiles of 64 keys; keys and then values use the same 16 KB. A thread
// keeps eight queries by four keys, then eight queries by four columns, in registers: it reads three float4 from shared
// memory per 32 multiply-adds. Queries, keys and probabilities are stored with the row index innermost, so that these
// reads are contiguous.

#define ROWS 64

// Write four consecutive numbers of a row, transposed: consecutive lanes write consecutive words.
__device__ __forceinline__ void store_column(float (*tile)[ROWS], int column, int row, float4 four) {
    tile[column][row] = four.x;
    tile[column + 1][row] = four.y;
    tile[column + 2][row] = four.z;
    tile[column + 3][row] = four.w;
}

// Transposed copy of 64 rows.
__device__ __forceinline__ void
load_columns(float (*tile)[ROWS], const float* source, long long step, int first, int rows) {
    int row = threadIdx.x & 63;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int column = 4 * ((threadIdx.x >> 6) + 2 * i);
        float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first + row < rows) four = *reinterpret_cast<const float4*>(source + (first + row) * step + column);
        store_column(tile, column, row, four);
    }
}

// The same, rotated. Numbers i and i + 32 of a row are the coordinates of a point.
__device__ __forceinline__ void rotate_columns(float (*tile)[ROWS], const float* source, long long step, int first,
                                               int rows, const float* rotation) {
    const int row = threadIdx.x & 63;
#pragma unroll 1
    for (int column = 4 * (threadIdx.x >> 6); column < SIZE / 2; column += 8) {
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f), y = x, c = x, s = x;
        if (first + row < rows) {
            const float* from = source + (first + row) * step + column;
            const float* cosine = rotation + (long long)(first + row) * SIZE + column;
            x = *reinterpret_cast<const float4*>(from);
            y = *reinterpret_cast<const float4*>(from + SIZE / 2);
            c = *reinterpret_cast<const float4*>(cosine);
            s = *reinterpret_cast<const float4*>(cosine + SIZE / 2);
        }
        store_column(tile, column, row,
                     make_float4(x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y, x.z * c.z - y.z * s.z,
                                 x.w * c.w - y.w * s.w));
        store_column(tile, column + SIZE / 2, row,
                     make_float4(y.x * c.x + x.x * s.x, y.y * c.y + x.y * s.y, y.z * c.z + x.z * s.z,
                                 y.w * c.w + x.w * s.w));
    }
}

__device__ __forceinline__ void outer_product(float (&sum)[8][4], const float* eight, const float* four) {
    float4 low = *reinterpret_cast<const float4*>(eight), high = *reinterpret_cast<const float4*>(eight + 4);
    float4 right = *reinterpret_cast<const float4*>(four);
    float left[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        sum[i][0] += left[i] * right.x;
        sum[i][1] += left[i] * right.y;
        sum[i][2] += left[i] * right.z;
        sum[i][3] += left[i] * right.w;
    }
}

// Four blocks per multiprocessor limit the compiler to 128 registers, which spills from sm_100 on; three blocks do not.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define FLOAT_BOUNDS __launch_bounds__(128, 3)
#else
#define FLOAT_BOUNDS __launch_bounds__(128)
#endif

extern "C" __global__ void FLOAT_BOUNDS
attention_float(const float* __restrict__ query, const float* __restrict__ key, const float* __restrict__ value,
                float* __restrict__ out, int queries, int keys, long long query_row, long long query_image,
                long long key_row, long long key_image, long long value_row, long long value_image, float scale,
               const float* __restrict__ rotation) {
    __shared__ __align__(16) float query_tile[SIZE][ROWS];
    __shared__ __align__(16) float tile[SIZE][ROWS];  // keys with the row innermost, then values as they come
    __shared__ __align__(
        16) float weights[ROWS][ROWS];  // probabilities by key; groups of eight queries permuted by the key
    const int group = threadIdx.x >> 4, column = (threadIdx.x & 15) * 4, first = blockIdx.x * ROWS;
    const long long width = (long long)gridDim.y * SIZE;
    query += blockIdx.z * query_image + blockIdx.y * SIZE;
    key += blockIdx.z * key_image + blockIdx.y * SIZE;
    value += blockIdx.z * value_image + blockIdx.y * SIZE;
    out += blockIdx.z * queries * width + blockIdx.y * SIZE;

    if (ROTATED)
        rotate_columns(query_tile, query, query_row, first, queries, rotation);
    else
        load_columns(query_tile, query, query_row, first, queries);
    float output[8][4] = {}, largest[8], sum[8];
#pragma unroll
    for (int i = 0; i < 8; i++) largest[i] = LOWEST, sum[i] = 0.0f;

    for (int start = 0; start < keys; start += ROWS) {
        load_columns(tile, key, key_row, start, keys);
        __syncthreads();  // the keys have arrived
        float score[8][4] = {};
#pragma unroll 8
        for (int d = 0; d < SIZE; d++) outer_product(score, &query_tile[d][group * 8], &tile[d][column]);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float most = largest[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (start + column + j >= keys) score[i][j] = LOWEST;
                most = fmaxf(most, score[i][j]);
            }
            // A row of scores is distributed over sixteen consecutive lanes.
#pragma unroll
            for (int step = 8; step > 0; step >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
            float shift = most * scale, shrink = exp2f(largest[i] * scale - shift);
            sum[i] *= shrink;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                score[i][j] = exp2f(score[i][j] * scale - shift);
                sum[i] += score[i][j];
                output[i][j] *= shrink;
            }
            largest[i] = most;
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float* place = &weights[column + j][(group ^ (column >> 2 & 7)) * 8];
            *reinterpret_cast<float4*>(place) = make_float4(score[0][j], score[1][j], score[2][j], score[3][j]);
            *reinterpret_cast<float4*>(place + 4) = make_float4(score[4][j], score[5][j], score[6][j], score[7][j]);
        }
        __syncthreads();  // the probabilities have been computed, the keys are not needed any more
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int row = (threadIdx.x >> 4) + 8 * i;
            float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (start + row < keys) four = *reinterpret_cast<const float4*>(value + (start + row) * value_row + column);
            *reinterpret_cast<float4*>(&tile[row][column]) = four;
        }
        __syncthreads();  // the values have arrived
#pragma unroll 8
        for (int k = 0; k < ROWS; k++) outer_product(output, &weights[k][(group ^ (k >> 2 & 7)) * 8], &tile[k][column]);
        __syncthreads();  // values and probabilities have been used
    }

#pragma unroll
    for (int i = 0; i < 8; i++) {
        float total = sum[i];
#pragma unroll
        for (int step = 8; step > 0; step >>= 1) total += __shfl_xor_sync(0xffffffffu, total, step);
        float share = 1.0f / total;
        int row = first + group * 8 + i;
        if (row < queries)
            *reinterpret_cast<float4*>(out + row * width + column) =
                make_float4(output[i][0] * share, output[i][1] * share, output[i][2] * share, output[i][3] * share);
    }
}

// ---- Any head size -------------------------------------------------------------------------------
//
// A warp processes one query: its lanes compute the scores of 32 keys at a time, then divide the columns of the output
// among them. Shared memory contains, for each warp, the query, the output so far and 32 probabilities: 4 (2 S + 32)
// floats per block of four warps.

template <class Number>
__device__ __forceinline__ void
attend(const Number* query, const Number* key, const Number* value, Number* out, int size, int queries, int keys,
       long long query_row, long long query_image, long long key_row, long long key_image, long long value_row,
       long long value_image, float scale, const float* rotation) {
    extern __shared__ float room[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const long long row = (long long)blockIdx.x * 4 + warp, width = (long long)gridDim.y * size;
    float* wanted = room + warp * (2 * size + 32);
    float* output = wanted + size;
    float* weights = output + size;
    if (row >= queries) return;  // whole warps leave, and no barrier of the block follows
    query += blockIdx.z * query_image + row * query_row + blockIdx.y * size;
    key += blockIdx.z * key_image + blockIdx.y * size;
    value += blockIdx.z * value_image + blockIdx.y * size;
    out += (blockIdx.z * queries + row) * width + blockIdx.y * size;
    for (int d = lane; d < size; d += 32) {
        float number = (float)query[d];
        if (ROTATED) {
            const bool second = d >= size / 2;  // the second coordinate of a point
            const int point = second ? d - size / 2 : d;
            const float* cosine = rotation + row * size + point;
            const float other = (float)query[second ? point : d + size / 2], sine = cosine[size / 2];
            number = number * *cosine + other * (second ? sine : -sine);
        }
        wanted[d] = number * scale;
        output[d] = 0.0f;
    }
    __syncwarp();  // the query has been stored
    float largest = LOWEST, sum = 0.0f;
    for (int start = 0; start < keys; start += 32) {
        float score = LOWEST;
        if (start + lane < keys) {
            const Number* other = key + (start + lane) * key_row;
            score = 0.0f;
            for (int d = 0; d < size; d++) score += wanted[d] * (float)other[d];
        }
        float most = fmaxf(largest, score);
#pragma unroll
        for (int step = 16; step > 0; step >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
        float shrink = exp2f(largest - most), weight = exp2f(score - most);
        sum = sum * shrink + weight;
        largest = most;
        weights[lane] = weight;
        __syncwarp();  // the probabilities have been computed
        int count = min(32, keys - start);
        for (int d = lane; d < size; d += 32) {
            float total = output[d] * shrink;
            for (int k = 0; k < count; k++) total += weights[k] * (float)value[(start + k) * value_row + d];
            output[d] = total;
        }
        __syncwarp();  // and used
    }
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    for (int d = lane; d < size; d += 32) out[d] = (Number)(output[d] / sum);
}

#ifndef BFLOAT16
extern "C" __global__ void __launch_bounds__(128, 4)
attention_any_half(const __half* __restrict__ query, const __half* __restrict__ key,
                   const __half* __restrict__ value, __half* __restrict__ out, int size, int queries, int keys,
                   long long query_row, long long query_image, long long key_row, long long key_image,
                   long long value_row, long long value_image, float scale, const float* __restrict__ rotation) {
    attend(query, key, value, out, size, queries, keys, query_row, query_image, key_row, key_image, value_row,
           value_image, scale, rotation);
}
#endif

extern "C" __global__ void __launch_bounds__(128, 4)
attention_any_float(const float* __restrict__ query, const float* __restrict__ key, const float* __restrict__ value,
                    float* __restrict__ out, int size, int queries, int keys, long long query_row,
                    long long query_image, long long key_row, long long key_image, long long value_row,
                    long long value_image, float scale, const float* __restrict__ rotation) {
    attend(query, key, value, out, size, queries, keys, query_row, query_image, key_row, key_image, value_row,
           value_image, scale, rotation);
}
