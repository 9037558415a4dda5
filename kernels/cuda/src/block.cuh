// Sums, counts and ranks of a block of THREADS threads, for image_level.cu. No float is added atomically.

// Small arrays of a block.
struct Room {
    double sums[WARPS];
    unsigned long long keys[WARPS];
    double ends[THREADS];            // inclusive prefix sums of the threads' distances
    double parts[THREADS * VECTOR];  // sums of the rows of one cluster, by group of threads
    double attention[MOST_CLUSTERS];
    int border[MOST_CLUSTERS], counts[MOST_CLUSTERS], starts[MOST_CLUSTERS], foreground[MOST_CLUSTERS];
    int candidates[MOST_CANDIDATES];
};

struct Vector {
    float v[VECTOR];
};

__device__ __forceinline__ Vector load(const float* p) {
    Vector x;
#if VECTOR == 4
    const float4 four = *reinterpret_cast<const float4*>(p);
    x.v[0] = four.x, x.v[1] = four.y, x.v[2] = four.z, x.v[3] = four.w;
#else
    x.v[0] = *p;
#endif
    return x;
}

// --- Sums, counts and largest values of a block: every thread gets the result -----------------------------------------

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(EVERY_LANE, x, step);
    return x;
}

__device__ double block_sum(double x, Room& room) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) room.sums[threadIdx.x / 32] = x;
    __syncthreads();  // the warps' sums have been stored
    double total = 0.0;
    for (int warp = 0; warp < WARPS; warp++) total += room.sums[warp];
    __syncthreads();  // the sums have been used
    return total;
}

__device__ unsigned long long block_max(unsigned long long x, Room& room) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = max(x, __shfl_xor_sync(EVERY_LANE, x, step));
    if (threadIdx.x % 32 == 0) room.keys[threadIdx.x / 32] = x;
    __syncthreads();  // the warps' keys have been stored
    for (int warp = 0; warp < WARPS; warp++) x = max(x, room.keys[warp]);
    __syncthreads();  // the keys have been used
    return x;
}

// Unsigned numbers in the order of floats.
__device__ __forceinline__ unsigned ordered(float x) {
    const unsigned bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The value of a rank, from 0: the largest number that no more than `rank` values are below.
__device__ float ranked(const float* values, int n, int rank, Room& room) {
    unsigned found = 0;
    for (int bit = 31; bit >= 0; bit--) {
        const unsigned tried = found | 1u << bit;
        int below = 0;
        for (int i = threadIdx.x; i < n; i += THREADS) below += ordered(values[i]) < tried;
        if (block_sum(below, room) <= rank) found = tried;
    }
    return __uint_as_float(found & 0x80000000u ? found & 0x7fffffffu : ~found);
}

// As NumPy's percentile.
__device__ double percentile(const float* values, int n, double percent, Room& room) {
    const double place = (n - 1) * (percent / 100.0);
    const int rank = min((int)place, n - 1);
    const double low = ranked(values, n, rank, room), high = ranked(values, n, min(rank + 1, n - 1), room);
    return low + (high - low) * (place - rank);
}
