// The instructions that C++ has no words for: matrix products of a warp, and copies that don't wait. Each has a twin in
// plain C++, which is what runs on a CPU; on a GPU only the PTX is compiled.
//
// A warp's lane is 4 g + t. Of a 16 x K left operand it holds parts of rows g and g + 8, of a K x 8 right operand parts
// of column g, of the 16 x 8 result columns 2t and 2t + 1 of rows g and g + 8: c[0], c[1] and c[2], c[3].

#ifdef __CUDACPU__

// The operands' lanes that this lane's results need: two rows of the left, two columns of the right operand, four lanes
// each.
struct Operands {
    unsigned a[2][4][2], b[2][4][2];
};
__device__ inline Operands gather_operands(const unsigned a[4], const unsigned b[2]) {
    Operands all;
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const unsigned long long upper = a[0] | (unsigned long long)a[2] << 32,
                             lower = a[1] | (unsigned long long)a[3] << 32,
                             column = b[0] | (unsigned long long)b[1] << 32;
    for (int i = 0; i < 4; i++) {
        const unsigned long long words[4] = {
            __shfl_sync(0xffffffffu, upper, g * 4 + i), __shfl_sync(0xffffffffu, lower, g * 4 + i),
            __shfl_sync(0xffffffffu, column, 8 * t + i), __shfl_sync(0xffffffffu, column, 8 * t + 4 + i)};
        for (int j = 0; j < 2; j++)
            for (int half = 0; half < 2; half++) {
                all.a[j][i][half] = (unsigned)(words[j] >> 32 * half);
                all.b[j][i][half] = (unsigned)(words[2 + j] >> 32 * half);
            }
    }
    return all;
}
__device__ inline float half_bits(unsigned word, int i) {
    return __half2float(__ushort_as_half((unsigned short)(word >> 16 * i)));
}

// What a tensor core makes of c plus exact products. It doesn't round: all terms are shifted to the exponent of the
// largest and cut off one bit below a float's last there, and so is what they add up to, towards zero (Fasi et al. 2021,
// on sm_80; later ones keep more bits and take more products at once). A long sum that stays in a tensor core therefore
// loses up to one last bit a step, always in the same direction.
__device__ inline float truncated_sum(float c, const double* products, int count) {
    double largest = fabs((double)c), plain = c;
    for (int i = 0; i < count; i++) {
        largest = fmax(largest, fabs(products[i]));
        plain += products[i];
    }
    if (!(largest > 0.0 && fabs(plain) < 1e300)) return (float)plain;  // zero, or infinite, or not a number
    const double unit = ldexp(1.0, ilogb(largest) - 24);
    double sum = trunc(c / unit);
    for (int i = 0; i < count; i++) sum += trunc(products[i] / unit);
    const float nearest = (float)(sum * unit);
    return fabs((double)nearest) > fabs(sum * unit) ? nextafterf(nearest, 0.f) : nearest;
}

__device__ inline void multiply_half(float c[4], const unsigned a[4], const unsigned b[2]) {
    const Operands all = gather_operands(a, b);
    for (int row = 0; row < 2; row++)
        for (int column = 0; column < 2; column++)
            for (int half = 0; half < 2; half++) {
                double products[8];
                for (int i = 0; i < 8; i++)
                    products[i] = (double)half_bits(all.a[row][i / 2][half], i % 2) *
                                  half_bits(all.b[column][i / 2][half], i % 2);
                c[row * 2 + column] = truncated_sum(c[row * 2 + column], products, 8);
            }
}
// The GPU ignores the last 13 bits of each operand; so does this.
__device__ inline float tf32_bits(unsigned word) { return __uint_as_float(word & 0xffffe000u); }

__device__ inline void multiply_tf32(float c[4], const unsigned a[4], const unsigned b[2]) {
    const Operands all = gather_operands(a, b);
    for (int row = 0; row < 2; row++)
        for (int column = 0; column < 2; column++)
            for (int half = 0; half < 2; half++) {
                double products[4];
                for (int i = 0; i < 4; i++)
                    products[i] = (double)tf32_bits(all.a[row][i][half]) * tf32_bits(all.b[column][i][half]);
                c[row * 2 + column] = truncated_sum(c[row * 2 + column], products, 4);
            }
}
// The emulator lets copies arrive only when they're waited for.
__device__ inline void copy_16_bytes(void* shared, const void* global) { emu_copy_later(shared, global, 16); }
__device__ inline void copies_issued() { emu_close_copies(); }
template <int PENDING> __device__ inline void wait_for_copies() { emu_await_copies(PENDING); }

#elif __CUDA_ARCH__ >= 800

// c += a b: 16 x 16 by 16 x 8 halves, accumulated in float32.
__device__ __forceinline__ void multiply_half(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// c += a b: 16 x 8 by 8 x 8 floats of which the first 19 bits count, accumulated in float32.
__device__ __forceinline__ void multiply_tf32(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void copy_16_bytes(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(shared)),
                 "l"(global)
                 : "memory");
}
// Closes a group of copies; groups end in the order in which they were closed.
__device__ __forceinline__ void copies_issued() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING groups of this thread's copies are under way.
template <int PENDING> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#endif
