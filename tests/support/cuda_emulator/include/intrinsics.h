// Mathematics and bit tricks. The approximate functions of the GPU (__expf and others) are the exact ones here.
#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>

static inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __sinf sinf
#define __cosf cosf
#define __powf powf
#define normcdff(x) (0.5f * erfcf(-(x) * 0.70710678118654752f))
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.f / a; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __fdiv_rn(float a, float b) { return a / b; }
// noinline: nothing may be contracted into a fused multiply-add across these.
#define EMU_EXACT static __attribute__((noinline, unused))
EMU_EXACT float __fmul_rn(float a, float b) { return a * b; }
EMU_EXACT float __fadd_rn(float a, float b) { return a + b; }
EMU_EXACT float __fsub_rn(float a, float b) { return a - b; }
EMU_EXACT double __dmul_rn(double a, double b) { return a * b; }
EMU_EXACT double __dadd_rn(double a, double b) { return a + b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __saturatef(float a) { return a < 0.f ? 0.f : a > 1.f ? 1.f : a == a ? a : 0.f; }

template <class T, class U> static inline U emu_bits(T value) {
    static_assert(sizeof(T) == sizeof(U), "same size");
    U bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float __int_as_float(int v) { return emu_bits<int, float>(v); }
static inline int __float_as_int(float v) { return emu_bits<float, int>(v); }
static inline float __uint_as_float(unsigned v) { return emu_bits<unsigned, float>(v); }
static inline unsigned __float_as_uint(float v) { return emu_bits<float, unsigned>(v); }
static inline double __longlong_as_double(long long v) { return emu_bits<long long, double>(v); }
static inline long long __double_as_longlong(double v) { return emu_bits<double, long long>(v); }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
static inline int __clzll(long long v) { return v ? __builtin_clzll(v) : 64; }
static inline unsigned __brev(unsigned v) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (v >> i & 1u) << (31 - i);
    return r;
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline int __float2int_rn(float v) { return (int)rintf(v); }
static inline int __float2int_rd(float v) { return (int)floorf(v); }
static inline int __float2int_ru(float v) { return (int)ceilf(v); }
static inline int __float2int_rz(float v) { return (int)v; }
static inline unsigned __float2uint_rn(float v) { return (unsigned)rintf(v); }
static inline float __int2float_rn(int v) { return (float)v; }
static inline float __uint2float_rn(unsigned v) { return (float)v; }
static inline float __double2float_rn(double v) { return (float)v; }
template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T __ldcs(const T* p) { return *p; }
template <class T> static inline T __ldcg(const T* p) { return *p; }
template <class T> static inline void __stcs(T* p, T v) { *p = v; }
template <class T> static inline void __stcg(T* p, T v) { *p = v; }
static inline size_t __cvta_generic_to_shared(const void* p) { return (size_t)p; }
template <class A, class B> static inline auto min(A a, B b) -> typename std::common_type<A, B>::type {
    return a < b ? a : b;
}
template <class A, class B> static inline auto max(A a, B b) -> typename std::common_type<A, B>::type {
    return a > b ? a : b;
}
