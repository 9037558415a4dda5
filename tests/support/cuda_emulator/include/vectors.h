// The short vectors (float4 and the like), with CUDA's alignments.
#pragma once

#define EMU_VECTORS(T, name, size, align4) \
    struct name##1 { T x; }; \
    struct __attribute__((aligned(size * 2))) name##2 { T x, y; }; \
    struct name##3 { T x, y, z; }; \
    struct __attribute__((aligned(align4))) name##4 { T x, y, z, w; }; \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
    static inline name##3 make_##name##3(T x, T y, T z) { return name##3 {x, y, z}; } \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define uint3 emu_uint3  // the one in fibre.h is the same
EMU_VECTORS(unsigned, uint, 4, 16)
#undef uint3
EMU_VECTORS(float, float, 4, 16)
EMU_VECTORS(int, int, 4, 16)
EMU_VECTORS(unsigned char, uchar, 1, 4)
EMU_VECTORS(signed char, char, 1, 4)
EMU_VECTORS(short, short, 2, 8)
EMU_VECTORS(unsigned short, ushort, 2, 8)
EMU_VECTORS(double, double, 8, 16)
EMU_VECTORS(long long, longlong, 8, 16)
EMU_VECTORS(unsigned long long, ulonglong, 8, 16)
