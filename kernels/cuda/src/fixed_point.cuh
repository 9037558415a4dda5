// Interpolation and 16-bit fixed point with the bits of the CPU, for image.cu and guided.cu.

// start + weight (stop - start), rounded after each operation, as on the CPU.
__device__ __forceinline__ float between(float start, float stop, float weight) {
    return __fadd_rn(__fmul_rn(stop - start, weight), start);
}

__device__ __forceinline__ float clip(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }

__device__ __forceinline__ unsigned short sixteen_bits(float x) {
    return (unsigned short)rintf(__fmul_rn(clip(x), 65535.0f));
}
