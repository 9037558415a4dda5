// Rounding to bfloat16, the upper half of a float's bits, stored as an unsigned short: to nearest, ties to even.

__device__ __forceinline__ unsigned short shortened(float v) {
    const unsigned bits = __float_as_uint(v);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;  // NaN, which rounding might make infinite
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
