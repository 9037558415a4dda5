// Conversion between float32 and bfloat16, the upper half of a float's bits, rounded to nearest, ties to even.
//
// A bfloat16 number is stored as an unsigned short. One thread per four numbers; arrays are aligned to 16 bytes. Bound
// by memory bandwidth: 6 bytes per number.
//
// Version history: there is one version, not timed on a GPU yet.

#include "bfloat16.cuh"

#define THREADS 256

extern "C" __global__ void __launch_bounds__(THREADS)
    shorten(const float* __restrict__ x, long long size, unsigned short* __restrict__ out) {
    const long long i = 4 * ((long long)blockIdx.x * THREADS + threadIdx.x);
    if (i + 4 <= size) {
        const float4 v = *reinterpret_cast<const float4*>(x + i);
        *reinterpret_cast<ushort4*>(out + i) =
            make_ushort4(shortened(v.x), shortened(v.y), shortened(v.z), shortened(v.w));
    } else
        for (long long j = i; j < size; j++) out[j] = shortened(x[j]);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    lengthen(const unsigned short* __restrict__ x, long long size, float* __restrict__ out) {
    const long long i = 4 * ((long long)blockIdx.x * THREADS + threadIdx.x);
    if (i + 4 <= size) {
        const ushort4 v = *reinterpret_cast<const ushort4*>(x + i);
        *reinterpret_cast<float4*>(out + i) =
            make_float4(__uint_as_float((unsigned)v.x << 16), __uint_as_float((unsigned)v.y << 16),
                        __uint_as_float((unsigned)v.z << 16), __uint_as_float((unsigned)v.w << 16));
    } else
        for (long long j = i; j < size; j++) out[j] = __uint_as_float((unsigned)x[j] << 16);
}
