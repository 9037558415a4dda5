// Words of two 16-bit numbers, IEEE halves or with BFLOAT16 defined bfloat16, and powers of two. Before sm_80 the file
// that includes this one needs cuda_fp16.h.

__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDACPU__
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// Two floats as 16-bit numbers in one word, the first in the lower half.
__device__ __forceinline__ unsigned pack(float first, float second) {
#if defined(BFLOAT16) && defined(__CUDACPU__)
    unsigned a = __float_as_uint(first), b = __float_as_uint(second);
    return (a + 0x7fff + (a >> 16 & 1)) >> 16 | ((b + 0x7fff + (b >> 16 & 1)) & 0xffff0000);
#elif defined(__CUDACPU__) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800)
    __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<unsigned*>(&pair);
#else
    unsigned word;
#ifdef BFLOAT16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
#endif
    return word;
#endif
}

// The two 16-bit numbers of a word as floats.
__device__ __forceinline__ float2 unpack_pair(unsigned word) {
#ifdef BFLOAT16
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000));
#elif defined(__CUDACPU__)
    return __half22float2(*reinterpret_cast<__half2*>(&word));
#else
    float2 pair;
    asm("{.reg .f16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;}"
        : "=f"(pair.x), "=f"(pair.y)
        : "r"(word));
    return pair;
#endif
}
