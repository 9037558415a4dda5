// What follows a linear layer, in one pass over its output: bias, exact GELU, LayerScale, residual; and the gate of
// SwiGLU.
//
// Matrix products are cuBLAS's. Each of these reads and writes every number once, two at a time, one thread a pair; the
// arithmetic hides behind the bytes. HALF: arrays are float16, else float32; arithmetic is float32. The last axis is
// even.
//
// What each version gained. Not timed on a GPU yet; counted in passes over the layer's output.
//   1. Bias, GELU, LayerScale and sum as CuPy expressions: 4 to 6 passes.
//   2. Fused, in place: 2 passes for bias + GELU (read, write), 3 for the residual (read both, write one).

#include <cuda_fp16.h>

#define THREADS 256

#ifdef HALF
typedef __half real;
__device__ __forceinline__ float2 load(const __half* p) { return __half22float2(*reinterpret_cast<const __half2*>(p)); }
__device__ __forceinline__ void store(__half* p, float2 v) {
    *reinterpret_cast<__half2*>(p) = __floats2half2_rn(v.x, v.y);
}
#else
typedef float real;
__device__ __forceinline__ float2 load(const float* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ void store(float* p, float2 v) { *reinterpret_cast<float2*>(p) = v; }
#endif

__device__ __forceinline__ float gelu_of(float v) { return 0.5f * v * (1.f + erff(v * 0.70710678f)); }
__device__ __forceinline__ float silu_of(float v) { return v / (1.f + expf(-v)); }

// out = residual + scale f(x + bias), f being GELU or nothing; all (size / width, width), out possibly x or residual.
// bias and scale (width,), and each of these and residual possibly null.
extern "C" __global__ void __launch_bounds__(THREADS)
    epilogue(const real* x, const real* __restrict__ bias, const real* __restrict__ scale, const real* residual,
             int gelu, long long size, int width, real* out) {
    const long long i = 2 * ((long long)blockIdx.x * THREADS + threadIdx.x);
    if (i >= size) return;
    const int column = (int)(i % width);
    float2 v = load(x + i);
    if (bias) {
        const float2 b = load(bias + column);
        v = make_float2(v.x + b.x, v.y + b.y);
    }
    if (gelu) v = make_float2(gelu_of(v.x), gelu_of(v.y));
    if (scale) {
        const float2 s = load(scale + column);
        v = make_float2(v.x * s.x, v.y * s.y);
    }
    if (residual) {
        const float2 r = load(residual + i);
        v = make_float2(v.x + r.x, v.y + r.y);
    }
    store(out + i, v);
}

// x (size / width, 2 width), the gate first; out (size / width, width): silu(gate) value.
extern "C" __global__ void __launch_bounds__(THREADS)
    swiglu(const real* __restrict__ x, long long size, int width, real* __restrict__ out) {
    const long long i = 2 * ((long long)blockIdx.x * THREADS + threadIdx.x);
    if (i >= size) return;
    const real* from = x + i / width * 2 * width + i % width;
    const float2 gate = load(from), value = load(from + width);
    store(out + i, make_float2(silu_of(gate.x) * value.x, silu_of(gate.y) * value.y));
}
