// Instructions of attention.cu that C++ cannot express, each with a version in plain C++ (TWIN) for the emulator on a
// CPU: products of a warp, asynchronous copies, and loads of matrices from shared memory.

#if defined(__CUDACPU__)
#define TWIN 1
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define AMPERE 1
#endif

#ifdef TWIN
inline float unpack(unsigned long long words, int i) {
    unsigned short bits = (unsigned short)(words >> 16 * i);
#ifdef BFLOAT16
    return __uint_as_float((unsigned)bits << 16);
#else
    __half value;
    memcpy(&value, &bits, 2);
    return __half2float(value);
#endif
}
#endif

// Asynchronous copies from global to shared memory, 16 bytes each. The CPU version copies as late as a GPU may do it:
// nothing arrives before wait().
struct Copies {
#ifdef TWIN
    uint4* to[32];
    const uint4* from[32];
    int count = 0;
#endif
    __device__ __forceinline__ void copy(Half* target, const Half* source, bool wanted) {
#if defined(TWIN)
        to[count] = reinterpret_cast<uint4*>(target);
        from[count++] = wanted ? reinterpret_cast<const uint4*>(source) : nullptr;
#elif defined(AMPERE)
        unsigned address = (unsigned)__cvta_generic_to_shared(target);
        int bytes = wanted ? 16 : 0;  // the rest of the 16 is filled with zeros
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source), "r"(bytes)
                     : "memory");
#else
        uint4 zeros = make_uint4(0, 0, 0, 0);
        *reinterpret_cast<uint4*>(target) = wanted ? *reinterpret_cast<const uint4*>(source) : zeros;
#endif
    }
    __device__ __forceinline__ void wait() {
#if defined(TWIN)
        for (int i = 0; i < count; i++) *to[i] = from[i] ? *from[i] : make_uint4(0, 0, 0, 0);
        count = 0;
#elif defined(AMPERE)
        asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    }
};

// An address in shared memory: 32 bits are enough, and the compiler can put constant offsets into the instruction.
#ifdef TWIN
typedef const Half* Place;
inline Place place_of(const Half* tile) { return tile; }
inline Place after(Place place, int numbers) { return place + numbers; }
#else
typedef unsigned Place;
__device__ __forceinline__ Place place_of(const Half* tile) { return (unsigned)__cvta_generic_to_shared(tile); }
__device__ __forceinline__ Place after(Place place, int numbers) { return place + 2 * numbers; }
#endif

// Load four 8 x 8 matrices of 16-bit numbers from shared memory: lane 8 i + r passes the address of row r of matrix i;
// each lane gets the pair of numbers at (lane / 4, 2 (lane % 4)) of every matrix, or with `transposed` of its
// transpose.
template <bool transposed>
__device__ __forceinline__ void load_matrices(unsigned (&word)[4], Place place) {
#ifdef TWIN
    const unsigned short* row = reinterpret_cast<const unsigned short*>(place);
    int lane = threadIdx.x & 31;
    for (int i = 0; i < 4; i++) {
        if (transposed) {
            const unsigned short* upper = __shfl_sync(0xffffffffu, row, 8 * i + 2 * (lane & 3));
            const unsigned short* lower = __shfl_sync(0xffffffffu, row, 8 * i + 2 * (lane & 3) + 1);
            word[i] = upper[lane >> 2] | (unsigned)lower[lane >> 2] << 16;
        } else {
            const unsigned short* mine = __shfl_sync(0xffffffffu, row, 8 * i + (lane >> 2));
            word[i] = mine[2 * (lane & 3)] | (unsigned)mine[2 * (lane & 3) + 1] << 16;
        }
    }
#else
    if (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                     : "r"(place)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                     : "r"(place)
                     : "memory");
#endif
}

// c (16 x 8) = a (16 x 16) b (16 x 8), plus c if `added`. With g = lane / 4 and p = 2 (lane % 4), a lane has the
// following numbers. Of a: the pairs of columns from p in rows g and g + 8, then those from p + 8. Of b: the pairs of
// rows from p and from p + 8 in column g. Of c: columns p and p + 1 of row g, then of row g + 8.
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bool added) {
#if defined(TWIN)
    int lane = threadIdx.x & 31, group = lane & ~3, column = 2 * (lane & 3);
    unsigned long long low = a[0] | (unsigned long long)a[2] << 32, high = a[1] | (unsigned long long)a[3] << 32;
    unsigned long long right = b0 | (unsigned long long)b1 << 32;
    for (int i = 0; i < 4 && !added; i++) c[i] = 0.0f;
    for (int i = 0; i < 4; i++) {
        unsigned long long upper = __shfl_sync(0xffffffffu, low, group + i);
        unsigned long long lower = __shfl_sync(0xffffffffu, high, group + i);
        unsigned long long first = __shfl_sync(0xffffffffu, right, 4 * column + i);
        unsigned long long second = __shfl_sync(0xffffffffu, right, 4 * (column + 1) + i);
        for (int j = 0; j < 4; j++) {
            c[0] += unpack(upper, j) * unpack(first, j);
            c[1] += unpack(upper, j) * unpack(second, j);
            c[2] += unpack(lower, j) * unpack(first, j);
            c[3] += unpack(lower, j) * unpack(second, j);
        }
    }
#else
    // A constant zero costs the tensor cores nothing; registers full of zeros would have to be filled.
    float c0 = added ? c[0] : 0.0f, c1 = added ? c[1] : 0.0f, c2 = added ? c[2] : 0.0f, c3 = added ? c[3] : 0.0f;
#if defined(AMPERE)
#ifdef BFLOAT16
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#endif
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
#else
    asm("{.reg .f32 x0, x1, x2, x3;"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {x0, x1, x2, x3}, {%4, %5}, {%8}, {%10, %11, %12, %13};"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%6, %7}, {%9}, {x0, x1, x2, x3};}"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
#endif
#endif
}
