// Layer normalization of the last axis: (x - mean) / sqrt(variance + eps) * weight + bias, statistics in float32.
//
// One warp a row. The row stays in registers between the three steps (mean, variance about the mean, result), so that
// it's read once and written once, 16 bytes a lane at a time. Four rows a block; no shared memory, no barriers. HALF: x
// and y are float16, weight and bias too, else float32. WIDTH: numbers in a row, a multiple of 32 lanes' worth of 16
// bytes or not (lanes past the end idle), but a multiple of 16 bytes. Without WIDTH any width works: numbers are read
// one by one, twice.
//
// What each version gained. Not timed on a GPU yet; counted in bytes, for rows of 384 halves on an H200 (4.3 TB/s of
// copying).
//   1. One thread block a row, sums through shared memory: 2 barriers for 1.5 KB of work.
//   2. One warp a row in registers: bytes moved are those of the arrays, 1.5 KB a row, so 0.36 ns at the copy rate.

#include <cuda_fp16.h>

#define WARPS 4
#define EVERY_LANE 0xffffffffu

#ifdef HALF
typedef __half real;
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ __half narrow(float v) { return __float2half_rn(v); }
#else
typedef float real;
__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float narrow(float v) { return v; }
#endif

// 16 bytes of numbers.
constexpr int PIECE = 16 / sizeof(real);
struct __align__(16) Piece {
    real values[PIECE];
};

__device__ __forceinline__ float sum_over_warp(float v) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(EVERY_LANE, v, step);
    return v;
}

// Blocks a multiprocessor: four, so at most 128 registers a thread. The widest rows of floats take 64 of them for the row
// alone, and would spill; three blocks allow 168.
#if defined(WIDTH) && WIDTH > 1920
#define BLOCKS 3
#else
#define BLOCKS 4
#endif

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    layernorm(const real* __restrict__ x, const real* __restrict__ weight, const real* __restrict__ bias, float eps,
              long long rows, int width, real* __restrict__ y) {
    const long long row = (long long)blockIdx.x * WARPS + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;  // whole warps, so the shuffles below are complete
#ifdef WIDTH
    constexpr int pieces = WIDTH / PIECE, rounds = (pieces + 31) / 32;
    static_assert(WIDTH % PIECE == 0, "rows are a multiple of 16 bytes");
    const Piece *from = reinterpret_cast<const Piece*>(x + row * WIDTH),
                *scale = reinterpret_cast<const Piece*>(weight), *shift = reinterpret_cast<const Piece*>(bias);
    float values[rounds][PIECE];
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < rounds; i++) {
        const int piece = lane + i * 32;
        if (piece >= pieces) continue;
        const Piece in = from[piece];
#pragma unroll
        for (int j = 0; j < PIECE; j++) sum += values[i][j] = widen(in.values[j]);
    }
    const float mean = sum_over_warp(sum) / WIDTH;
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < rounds; i++) {
        if (lane + i * 32 >= pieces) continue;
#pragma unroll
        for (int j = 0; j < PIECE; j++) squares = fmaf(values[i][j] - mean, values[i][j] - mean, squares);
    }
    const float factor = 1.f / sqrtf(sum_over_warp(squares) / WIDTH + eps);
#pragma unroll
    for (int i = 0; i < rounds; i++) {
        const int piece = lane + i * 32;
        if (piece >= pieces) continue;
        const Piece g = scale[piece], b = shift[piece];
        Piece out;
#pragma unroll
        for (int j = 0; j < PIECE; j++)
            out.values[j] = narrow(fmaf((values[i][j] - mean) * factor, widen(g.values[j]), widen(b.values[j])));
        reinterpret_cast<Piece*>(y + row * WIDTH)[piece] = out;
    }
#else
    const real* from = x + row * width;
    float sum = 0.f, squares = 0.f;
    for (int i = lane; i < width; i += 32) sum += widen(from[i]);
    const float mean = sum_over_warp(sum) / width;
    for (int i = lane; i < width; i += 32) squares = fmaf(widen(from[i]) - mean, widen(from[i]) - mean, squares);
    const float factor = 1.f / sqrtf(sum_over_warp(squares) / width + eps);
    for (int i = lane; i < width; i += 32)
        y[row * width + i] = narrow(fmaf((widen(from[i]) - mean) * factor, widen(weight[i]), widen(bias[i])));
#endif
}
