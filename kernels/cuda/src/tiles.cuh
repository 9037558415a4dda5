// Products of all rows of x with all rows of y, tile by tile: what k-means and cosine similarity have in common.
//
// A block of 256 threads takes ROWS rows of x into shared memory, and goes through the rows of y GROUP at a time
// ("columns", since that's what they are in the product). Sums of squares of the rows of x come along, so x is read
// from memory once.
//
// Set by #define: HALF: x is float16, else float32 · ROWS 16, 32 or 64 · GROUP 8, 32 or 64 · STAGES 1 to 3, tiles in
// shared memory · COLUMNS_SHARED: y lies in shared memory too · WIDTH: numbers in a row, a multiple of 64 bytes.
// Without WIDTH the products are made by plain multiply-adds from global memory, for any width and any GPU: right, not
// fast.
//
// The products (with WIDTH, sm_80 and later). A lane reads 16 contiguous bytes of a row, a group of four lanes 64
// bytes, x and y alike. In which order the numbers of a row are multiplied doesn't matter as long as it's the same for
// both, so these 16 bytes are taken for the scattered numbers that the tensor cores want from a lane: no shuffles, no
// transposed copies. Rows stand 64 bytes past a multiple of 128 apart, so that the eight lanes of a quarter warp meet
// all banks once. Nothing is lost to the short formats: x and y in float32 are each split into two parts of 11 bits,
// and three of the four products kept (Markidis et al. 2018); y against float16 x is split into two halves, whose
// products with x are exact. Tensor cores cut sums off where a float would be rounded, always towards zero, which adds up
// over a row; so each chunk's sum begins at zero and is added to the others in plain arithmetic.
//
// Eight warps share a tile: M along its rows, N along the columns, S along the depth; the S partial sums meet in shared
// memory.

#include <cuda_fp16.h>

#define THREADS 256
#ifndef GROUP
#define GROUP 64
#endif
#ifndef ROWS
#define ROWS 32
#endif
#ifndef STAGES
#define STAGES 1
#endif
#if defined(WIDTH) && (defined(__CUDACPU__) || __CUDA_ARCH__ >= 800)
#define TENSOR_CORES
#endif

#include "tensor_core.cuh"

#ifdef HALF
typedef __half real;
#else
typedef float real;
#endif

// Threads that share a row once its products are there.
#define LANES (THREADS / ROWS)
#define EVERY_LANE 0xffffffffu

#ifdef TENSOR_CORES
constexpr int PER_LANE = 16 / sizeof(real), CHUNK = 4 * PER_LANE, CHUNKS = WIDTH / CHUNK;
constexpr int X_PITCH = ((WIDTH * (int)sizeof(real)) | 64) / (int)sizeof(real);
constexpr int TILES_M = ROWS >= 32 ? 2 : 1, WARPS_M = ROWS / (16 * TILES_M),
              WARPS_N = GROUP == 8    ? 1
                        : GROUP == 32 ? 2
                                      : 4;
constexpr int WARPS_S = THREADS / 32 / (WARPS_M * WARPS_N), TILES_N = GROUP / 8 / WARPS_N;
constexpr int Y_PARTS = sizeof(real) == 2 ? 2 : 1;  // arrays that y is kept in: its two halves, or itself
#ifdef COLUMNS_SHARED
constexpr int Y_PITCH = X_PITCH;
#else
constexpr int Y_PITCH = WIDTH;
#endif
static_assert(WIDTH % CHUNK == 0, "rows are a multiple of 64 bytes");
#else
constexpr int WARPS_S = 1;
#endif
constexpr int PARTIAL_PITCH = GROUP == 8 ? 8 : GROUP + 8;  // eight rows apart in banks, four of them meet all

__device__ __forceinline__ float2 load_pair(const float* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ float2 load_pair(const __half* p) {
    return __half22float2(*reinterpret_cast<const __half2*>(p));
}
__device__ __forceinline__ float load_one(const float* p) { return *p; }
__device__ __forceinline__ float load_one(const __half* p) { return __half2float(*p); }

// What a launch works on.
struct Problem {
    const real* x;  // (n, width)
    long long n;
    int width;
    const void* y;       // as prepare_columns wrote it
    int columns;         // rows of y
    const float* shift;  // (width,), subtracted from every row of x; or null
    bool directions;     // lengths of rows don't count
};

// A row of the tile, as the threads that look after it see it.
struct Row {
    long long number;
    bool exists;
    const real* x;
    float squares;  // their sum, of x times lift less the shift; and products are with x times lift
    float lift;     // 1, but for a row so short that its squares would be rounded to nothing
};

// What all threads of a block share beside the tiles.
struct Products {
    float partial[WARPS_S][ROWS][PARTIAL_PITCH];
    float squares[WARPS_S][ROWS];
};

#ifdef TENSOR_CORES

// Starts to copy a tile to shared memory. Rows past the end repeat the last one; nobody uses what becomes of them.
__device__ __forceinline__ void copy_tile(real* tile, const Problem& problem, long long first) {
    constexpr int pieces = WIDTH / PER_LANE;
    for (int i = threadIdx.x; i < ROWS * pieces; i += THREADS) {
        const int row = i / pieces, piece = i % pieces;
        const long long from = min(first + row, problem.n - 1);
        copy_16_bytes(tile + row * X_PITCH + piece * PER_LANE, problem.x + from * WIDTH + piece * PER_LANE);
    }
}

// y, where it fits into shared memory; `rows` counts those of all parts.
__device__ __forceinline__ void copy_columns(real* shared, const real* y, int rows) {
    constexpr int pieces = WIDTH / PER_LANE;
    for (int i = threadIdx.x; i < rows * pieces; i += THREADS) {
        const int row = i / pieces, piece = i % pieces;
        *reinterpret_cast<uint4*>(shared + row * X_PITCH + piece * PER_LANE) =
            *reinterpret_cast<const uint4*>(y + (size_t)row * WIDTH + piece * PER_LANE);
    }
}

#ifdef HALF

// One chunk of 32 numbers: two steps of 16, against both halves of y.
struct Left {
    uint4 upper, lower;  // 16 bytes of rows g and g + 8
    float squares[2];
    __device__ void load(const real* tile, const float* shift) {
        upper = *reinterpret_cast<const uint4*>(tile);
        lower = *reinterpret_cast<const uint4*>(tile + 8 * X_PITCH);
    }
    // Of x less the shift; the products make up for the shift in the columns' constants.
    __device__ void add_squares(float sums[2], const float* shift) const {
        const unsigned words[2][4] = {{upper.x, upper.y, upper.z, upper.w}, {lower.x, lower.y, lower.z, lower.w}};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 offset = shift ? *reinterpret_cast<const float2*>(shift + 2 * i) : make_float2(0.f, 0.f);
#pragma unroll
            for (int row = 0; row < 2; row++) {
                const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&words[row][i]));
                sums[row] = fmaf(v.x - offset.x, v.x - offset.x, sums[row]);
                sums[row] = fmaf(v.y - offset.y, v.y - offset.y, sums[row]);
            }
        }
    }
};
struct Right {
    uint4 parts[2];
    __device__ void load(const real* y, size_t part) {
        parts[0] = *reinterpret_cast<const uint4*>(y);
        parts[1] = *reinterpret_cast<const uint4*>(y + part);
    }
};
__device__ __forceinline__ void multiply(float c[4], const Left& x, const Right& y) {
    const unsigned first[4] = {x.upper.x, x.lower.x, x.upper.y, x.lower.y},
                   second[4] = {x.upper.z, x.lower.z, x.upper.w, x.lower.w};
#pragma unroll
    for (int part = 0; part < 2; part++) {
        const unsigned b[2] = {y.parts[part].x, y.parts[part].y}, d[2] = {y.parts[part].z, y.parts[part].w};
        multiply_half(c, first, b);
        multiply_half(c, second, d);
    }
}

#else

// A float as two that tensor cores take: the first 11 bits of its mantissa, and the rest.
__device__ __forceinline__ void split(float v, unsigned& high, unsigned& low) {
    high = __float_as_uint(v) & 0xffffe000u;
    low = __float_as_uint(v - __uint_as_float(high));
}
// One chunk of 16 numbers: two steps of 8.
struct Left {
    unsigned high[2][4], low[2][4];
    float values[2][4];
    __device__ void load(const real* tile, const float* shift) {
        float4 upper = *reinterpret_cast<const float4*>(tile),
               lower = *reinterpret_cast<const float4*>(tile + 8 * X_PITCH);
        if (shift) {
            const float4 offset = *reinterpret_cast<const float4*>(shift);
            upper = make_float4(upper.x - offset.x, upper.y - offset.y, upper.z - offset.z, upper.w - offset.w);
            lower = make_float4(lower.x - offset.x, lower.y - offset.y, lower.z - offset.z, lower.w - offset.w);
        }
        const float all[2][4] = {{upper.x, lower.x, upper.y, lower.y}, {upper.z, lower.z, upper.w, lower.w}};
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                values[step][i] = all[step][i];
                split(all[step][i], high[step][i], low[step][i]);
            }
    }
    __device__ void add_squares(float sums[2], const float*) const {
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[i & 1] = fmaf(values[step][i], values[step][i], sums[i & 1]);
    }
};
struct Right {
    unsigned high[2][2], low[2][2];
    __device__ void load(const real* y, size_t) {
        const float4 v = *reinterpret_cast<const float4*>(y);
        split(v.x, high[0][0], low[0][0]);
        split(v.y, high[0][1], low[0][1]);
        split(v.z, high[1][0], low[1][0]);
        split(v.w, high[1][1], low[1][1]);
    }
};
__device__ __forceinline__ void multiply(float c[4], const Left& x, const Right& y) {
#pragma unroll
    for (int step = 0; step < 2; step++) {
        multiply_tf32(c, x.high[step], y.low[step]);
        multiply_tf32(c, x.low[step], y.high[step]);
        multiply_tf32(c, x.high[step], y.high[step]);
    }
}
#endif

// Products of the tile with the columns from `column` on, to products.partial; with `squares` the rows' sums of squares
// too.
__device__ __forceinline__ void multiply_tile(Products& products, const Problem& problem, const real* tile,
                                              const real* y, size_t part, int column, bool squares) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int m = warp % WARPS_M, n = warp / WARPS_M % WARPS_N, s = warp / (WARPS_M * WARPS_N);
    const int first_row = m * TILES_M * 16 + g, first_column = n * TILES_N * 8;
    float sums[TILES_M][TILES_N][4] = {}, square[TILES_M][2] = {};
    squares = squares && n == 0;
    // Two of x's fragments and one of y's in flight are enough registers; unrolling further spills.
#pragma unroll 1
    for (int chunk = s; chunk < CHUNKS; chunk += WARPS_S) {
        const int from = chunk * CHUNK + t * PER_LANE;
        const float* shift = problem.shift ? problem.shift + from : nullptr;
        Left left[TILES_M];
#pragma unroll
        for (int i = 0; i < TILES_M; i++) {
            left[i].load(tile + (first_row + i * 16) * X_PITCH + from, shift);
            if (squares) left[i].add_squares(square[i], shift);
        }
#pragma unroll
        for (int j = 0; j < TILES_N; j++) {
            Right right;
            right.load(y + (size_t)(column + first_column + j * 8 + g) * Y_PITCH + from, part);
#pragma unroll
            for (int i = 0; i < TILES_M; i++) {
                float part_of_sum[4] = {};  // the chunk's; see above
                multiply(part_of_sum, left[i], right);
#pragma unroll
                for (int k = 0; k < 4; k++) sums[i][j][k] += part_of_sum[k];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < TILES_M; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first_row + i * 16 + half * 8;
#pragma unroll
            for (int j = 0; j < TILES_N; j++)
                *reinterpret_cast<float2*>(&products.partial[s][row][first_column + j * 8 + 2 * t]) =
                    make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
            if (!squares) continue;
            float sum = square[i][half];
            sum += __shfl_xor_sync(EVERY_LANE, sum, 1);
            sum += __shfl_xor_sync(EVERY_LANE, sum, 2);
            if (t == 0) products.squares[s][row] = sum;
        }
}

#else

// Four columns at a time, so that a number of x is read once for four products.
__device__ __forceinline__ void
multiply_tile(Products& products, const Problem& problem, const real* tile, int rows, int column, bool squares) {
    const int row = threadIdx.x / LANES, lane = threadIdx.x % LANES, width = problem.width;
    const real* x = tile + (size_t)min(row, rows - 1) * width;
    const float* y = (const float*)problem.y + (size_t)column * width;
    for (int c = lane * 4; c < GROUP; c += LANES * 4) {
        float sums[4] = {};
        for (int i = 0; i < width; i++) {
            const float v = load_one(x + i) - (problem.shift ? problem.shift[i] : 0.f);
#pragma unroll
            for (int j = 0; j < 4; j++) sums[j] = fmaf(v, y[(size_t)(c + j) * width + i], sums[j]);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) products.partial[0][row][c + j] = sums[j];
    }
    if (!squares || lane != 0) return;
    float sum = 0.f;
    for (int i = 0; i < width; i++) {
        const float v = load_one(x + i) - (problem.shift ? problem.shift[i] : 0.f);
        sum = fmaf(v, v, sum);
    }
    products.squares[0][row] = sum;
}

#endif

// ---- For the few rows that need another look

// Number i of a column.
__device__ __forceinline__ float column_at(const Problem& problem, int column, int i) {
#if defined(TENSOR_CORES) && defined(HALF)
    const __half* y = (const __half*)problem.y + (size_t)column * WIDTH + i;
    const size_t part = (size_t)((problem.columns + GROUP - 1) / GROUP * GROUP) * WIDTH;
    return __half2float(y[0]) + __half2float(y[part]);
#else
    return ((const float*)problem.y)[(size_t)column * problem.width + i];
#endif
}

// A row's squared distance from a column, from the differences themselves: the part of them that a thread takes.
__device__ __forceinline__ float
squared_distance(const Problem& problem, const Row& row, int column, int thread, int threads) {
    float sum = 0.f;
#pragma unroll 4
    for (int i = thread; i < problem.width; i += threads) {
        const float v = load_one(row.x + i) - (problem.shift ? problem.shift[i] : 0.f) - column_at(problem, column, i);
        sum = fmaf(v, v, sum);
    }
    return sum;
}

#define FAINT 1e-30f            // sums of squares below this have lost digits
#define SMALLEST 1.17549435e-38f  // what is shorter counts as zero

// Makes the largest number of a faint row 1. Halves are never so small.
__device__ __forceinline__ void lift(Row& row, int width) {
    float peak = 0.f;
#pragma unroll 4
    for (int i = 0; i < width; i++) peak = fmaxf(peak, fabsf(load_one(row.x + i)));
    if (peak < SMALLEST) return;
    row.lift = 1.f / peak;
    row.squares = 0.f;
#pragma unroll 4
    for (int i = 0; i < width; i++) {
        const float v = load_one(row.x + i) * row.lift;
        row.squares = fmaf(v, v, row.squares);
    }
}
__device__ __forceinline__ float lifted_product(const Problem& problem, const Row& row, int column) {
    float sum = 0.f;
#pragma unroll 4
    for (int i = 0; i < problem.width; i++)
        sum = fmaf(load_one(row.x + i) * row.lift, column_at(problem, column, i), sum);
    return sum;
}

// ----

// Bytes of dynamic shared memory in use before what a kernel keeps there itself.
__device__ __forceinline__ size_t tiles_bytes(int columns) {
#ifdef TENSOR_CORES
    size_t rows = STAGES * ROWS;
#ifdef COLUMNS_SHARED
    rows += (size_t)Y_PARTS * ((columns + GROUP - 1) / GROUP * GROUP);
#endif
    return rows * X_PITCH * sizeof(real);
#else
    return 0;
#endif
}

// Takes the block through its tiles. For every product of a row that exists with a column that exists, the thread that
// looks after it calls work.column(row, column, product); a row's LANES threads, neighbors in one warp, then call
// work.row(row), and all threads work.tile(tile, pitch, first row, rows), between barriers. A thread meets its columns
// in rising order.
template <class Work> __device__ __forceinline__ void
for_all_tiles(const Problem& problem, Products& products, unsigned char* shared, Work& work) {
    const int place = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const long long tiles = (problem.n + ROWS - 1) / ROWS;
    const int padded = (problem.columns + GROUP - 1) / GROUP * GROUP;
#ifdef TENSOR_CORES
    real* stages = reinterpret_cast<real*>(shared);
    const real* y = (const real*)problem.y;
    size_t part = (size_t)padded * Y_PITCH;
#ifdef COLUMNS_SHARED
    real* own = stages + STAGES * ROWS * X_PITCH;
    copy_columns(own, y, Y_PARTS * padded);
    y = own;
#endif
#pragma unroll
    for (int ahead = 0; ahead < STAGES - 1; ahead++) {
        const long long tile = blockIdx.x + (long long)ahead * gridDim.x;
        if (tile < tiles) copy_tile(stages + ahead * ROWS * X_PITCH, problem, tile * ROWS);
        copies_issued();
    }
    int stage = 0;
#endif
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const long long first = tile * ROWS;
        const int rows = (int)min((long long)ROWS, problem.n - first);
#ifdef TENSOR_CORES
        const long long next = tile + (long long)(STAGES - 1) * gridDim.x;
        const int free_stage = stage == 0 ? STAGES - 1 : stage - 1;
        if (next < tiles) copy_tile(stages + free_stage * ROWS * X_PITCH, problem, next * ROWS);
        copies_issued();
        wait_for_copies<STAGES - 1>();
        const real* here = stages + stage * ROWS * X_PITCH;
        const int pitch = X_PITCH;
        stage = stage + 1 == STAGES ? 0 : stage + 1;
#else
        const real* here = problem.x + first * problem.width;
        const int pitch = problem.width;
#endif
        Row row = {first + place, place < rows, here + (size_t)place * pitch, 0.f, 1.f};
        for (int column = 0; column < padded; column += GROUP) {
            __syncthreads();  // the tile has come; everybody is done with the last products
#ifdef TENSOR_CORES
            multiply_tile(products, problem, here, y, part, column, column == 0);
#else
            multiply_tile(products, problem, here, rows, column, column == 0);
#endif
            __syncthreads();  // products and squares are there
            if (!row.exists) continue;
            if (column == 0) {
#pragma unroll
                for (int s = 0; s < WARPS_S; s++) row.squares += products.squares[s][place];
                if (problem.directions && row.squares < FAINT && sizeof(real) > 2) lift(row, problem.width);
            }
            for (int c = lane; c < GROUP && column + c < problem.columns; c += LANES) {
                float product = 0.f;
#pragma unroll
                for (int s = 0; s < WARPS_S; s++) product += products.partial[s][place][c];
                if (row.lift != 1.f) product = lifted_product(problem, row, column + c);
                work.column(row, column + c, product);
            }
        }
        work.row(row);
        work.tile(here, pitch, first, rows);
        __syncthreads();  // the tile's stage is free
    }
}

// y (columns, width) float32 as the products want it: padded with rows of zeros to a multiple of GROUP, cut into its
// parts. With `normalize` each row gets unit length, a row of zeros staying one. One block a padded row. constants
// (padded,): what a column adds to a squared distance: |y|^2, and for float16 tiles 2 shift y, because there the shift
// is not subtracted before the product.
extern "C" __global__ void __launch_bounds__(128)
    prepare_columns(const float* __restrict__ y, const float* __restrict__ shift, void* __restrict__ out,
                    float* __restrict__ constants, int columns, int width, int normalize) {
    __shared__ double sums[2][4];
    const int row = blockIdx.x, warp = threadIdx.x / 32;
    const bool exists = row < columns;
    double squares = 0.0, shifted = 0.0;
    for (int i = threadIdx.x; i < width && exists; i += 128) {
        const double v = y[(size_t)row * width + i];
        squares += v * v;
        if (shift) shifted += v * shift[i];
    }
    for (int step = 16; step > 0; step /= 2) {
        squares += __shfl_xor_sync(EVERY_LANE, squares, step);
        shifted += __shfl_xor_sync(EVERY_LANE, shifted, step);
    }
    if (threadIdx.x % 32 == 0) {
        sums[0][warp] = squares;
        sums[1][warp] = shifted;
    }
    __syncthreads();
    squares = sums[0][0] + sums[0][1] + sums[0][2] + sums[0][3];
    shifted = sums[1][0] + sums[1][1] + sums[1][2] + sums[1][3];
    const float scale = normalize && squares > 0.0 ? (float)(1.0 / sqrt(squares)) : 1.f;
    for (int i = threadIdx.x; i < width; i += 128) {
        const size_t place = (size_t)row * width + i;
        const float v = exists ? y[place] * scale : 0.f;
#if defined(TENSOR_CORES) && defined(HALF)
        const __half high = __float2half_rn(v);
        ((__half*)out)[place] = high;
        ((__half*)out)[(size_t)gridDim.x * width + place] = __float2half_rn(v - __half2float(high));
#else
        ((float*)out)[place] = v;
#endif
    }
#if defined(TENSOR_CORES) && defined(HALF)
    squares += 2.0 * shifted;
#endif
    if (threadIdx.x == 0) constants[row] = (float)squares;
}
