// Rotary position embeddings of keys, on their way into the K/V cache of attention; those of queries are in attention.cu.
//
// x (B, N, D), heads concatenated, is rotated into out (B, N, D), which may be of another type; each has its own row
// stride and image stride, in elements. rotation (N, D / heads) float32 holds the cosines of each token's angles, then
// their sines. Numbers i and i + half of a head are the coordinates of a point, half = D / heads / 2. A block copies one
// token; a thread rotates PER_THREAD consecutive points at a time, which divides half, with 16 bytes per access where
// the types allow it. SOURCE_HALF: x is float16, else float32. TARGET_HALF: out is float16, TARGET_BFLOAT16: bfloat16,
// else float32. Bound by memory bandwidth: every number is read and written once, as in the copy that this replaces,
// and the rotation, of as many numbers as one head, comes from the L2 cache for all heads but the first.
//
// Version history: there is one version, not timed on a GPU yet.

#include <cuda_fp16.h>

#include "bfloat16.cuh"

#define THREADS 64
#ifndef PER_THREAD
#define PER_THREAD 1
#endif

#ifdef SOURCE_HALF
typedef __half Source;
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
#else
typedef float Source;
__device__ __forceinline__ float widen(float v) { return v; }
#endif

#if defined(TARGET_HALF)
typedef __half Target;
__device__ __forceinline__ __half narrow(float v) { return __float2half_rn(v); }
#elif defined(TARGET_BFLOAT16)
typedef unsigned short Target;
__device__ __forceinline__ unsigned short narrow(float v) { return shortened(v); }
#else
typedef float Target;
__device__ __forceinline__ float narrow(float v) { return v; }
#endif

// The numbers that a thread reads or writes with one instruction.
template <class Number>
struct __align__(PER_THREAD * sizeof(Number)) Piece {
    Number values[PER_THREAD];
};
template <class Number>
__device__ __forceinline__ Piece<Number> load(const Number* p) {
    return *reinterpret_cast<const Piece<Number>*>(p);
}
template <class Number>
__device__ __forceinline__ void store(Number* p, const Piece<Number>& v) {
    *reinterpret_cast<Piece<Number>*>(p) = v;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rotate(const Source* __restrict__ x, const float* __restrict__ rotation, Target* __restrict__ out, int heads,
           int half, long long x_row, long long x_image, long long out_row, long long out_image) {
    x += blockIdx.x * x_row + blockIdx.y * x_image;
    out += blockIdx.x * out_row + blockIdx.y * out_image;
    rotation += blockIdx.x * 2ll * half;
    const int pieces = half / PER_THREAD;  // in a head
    for (int i = threadIdx.x; i < heads * pieces; i += THREADS) {
        const int head = i / pieces, point = (i - head * pieces) * PER_THREAD, at = head * 2 * half + point;
        const Piece<Source> first = load(x + at), second = load(x + at + half);
        Piece<Target> new_first, new_second;
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
