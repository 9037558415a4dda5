// Rotary position embeddings of keys; those of queries are in attention.cu.
//
// x (B, N, D), heads concatenated, is rotated into out (B, N, D), which may be x; each has its own row stride and image
// stride, in elements. rotation (N, D / heads) float32 holds the cosines of each token's angles, then their sines.
// Numbers i and i + half of a head are the coordinates of a point, half = D / heads / 2. A block rotates one token; a
// thread rotates PER_THREAD consecutive points at a time, which divides half, with 16 bytes per access where half
// allows it. HALF: x and out are float16, else float32. Bound by memory bandwidth: every number is read and written
// once, and the rotation, of as many numbers as one head, comes from the L2 cache for all heads but the first.
//
// Version history. Not timed on a GPU yet.
//   1. From the projected keys into a K/V cache, whose type may be another.
//   2. In place too, in a fused product of queries, keys and values: a thread writes the points that it has read.

#include <cuda_fp16.h>

#define THREADS 64
#ifndef PER_THREAD
#define PER_THREAD 1
#endif

#ifdef HALF
typedef __half real;
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ __half narrow(float v) { return __float2half_rn(v); }
#else
typedef float real;
__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float narrow(float v) { return v; }
#endif

// The numbers that a thread reads or writes with one instruction.
struct __align__(PER_THREAD * sizeof(real)) Piece {
    real values[PER_THREAD];
};
__device__ __forceinline__ Piece load(const real* p) { return *reinterpret_cast<const Piece*>(p); }
__device__ __forceinline__ void store(real* p, const Piece& v) { *reinterpret_cast<Piece*>(p) = v; }

extern "C" __global__ void __launch_bounds__(THREADS)
    rotate(const real* x, const float* __restrict__ rotation, real* out, int heads, int half, long long x_row,
           long long x_image, long long out_row, long long out_image) {
    x += blockIdx.x * x_row + blockIdx.y * x_image;
    out += blockIdx.x * out_row + blockIdx.y * out_image;
    rotation += blockIdx.x * 2ll * half;
    const int pieces = half / PER_THREAD;  // in a head
    for (int i = threadIdx.x; i < heads * pieces; i += THREADS) {
        const int head = i / pieces, point = (i - head * pieces) * PER_THREAD, at = head * 2 * half + point;
        const Piece first = load(x + at), second = load(x + at + half);
        Piece new_first, new_second;
#pragma unroll
        for (int j = 0; j < PER_THREAD; j++) {
            const float c = rotation[point + j], s = rotation[half + point + j];
            const float a = widen(first.values[j]), b = widen(second.values[j]);
            new_first.values[j] = narrow(a * c - b * s);
            new_second.values[j] = narrow(b * c + a * s);
        }
        store(out + at, new_first);
        store(out + at + half, new_second);
    }
}
