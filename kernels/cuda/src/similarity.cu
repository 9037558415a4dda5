// Cosine similarity of all rows of x with all rows of y: the matrix, or for each row of x only its most similar rows of
// y.
//
// y arrives with rows of unit length (prepare_columns); x is brought to unit length on the fly, from the sums of
// squares that the products collect along the way. tiles.cuh has the products and says how a block works.
// similarity_top never stores the matrix. The LANES threads of a row each keep the best `count` among the columns they
// meet, sorted, in shared memory or, for large counts, in a part of global memory; a column that doesn't beat the last
// of the list costs one comparison, and after the first few hundred columns hardly any does. At the end of a tile the
// lists are merged by shuffles: whoever heads the best list gives its head away, `count` times.
//
// What each version gained. None has been timed on a GPU yet; these are counts for an H200 at D = 384, N = K = 10,000.
//   1. Products through tiles of 64 x 64 in plain multiply-adds: 38 billion, 1.3 ms at best, and 0.1 ms to write the
//      matrix.
//   2. Tensor cores without loss of accuracy (tiles.cuh): 0.7 ms in float32, 0.25 in float16. y is read from the
//      second-level cache once a tile of x, 5 GB in all: about 1 ms, now the longest part; a tile of 64 rows in float16
//      halves it.
//   3. Each chunk's sum leaves the tensor cores, which cut it off where a float would be rounded: four additions for four
//      to six products of a warp, and the largest error of a cosine falls from 1.5e-6 to 0.7e-6 at D = 64 (emulated).

#include "tiles.cuh"

__device__ __forceinline__ float cosine_of(float product, float squares) {
    return squares > 0.f ? product / sqrtf(squares) : 0.f;
}

struct Write {
    float* out;  // (n, columns)
    int columns;
    __device__ void column(const Row& row, int column, float product) {
        out[row.number * columns + column] = cosine_of(product, row.squares);
    }
    __device__ void row(const Row&) {}
    __device__ void tile(const real*, int, long long, int) {}
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    similarity(const real* __restrict__ x, const void* __restrict__ y, long long n, int width, int columns,
               float* __restrict__ out) {
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ Products products;
    const Problem problem = {x, n, width, y, columns, nullptr, true};
    Write work = {out, columns};
    for_all_tiles(problem, products, shared, work);
}

// Place i of this thread's list; lists of neighbors lie interleaved, so that a warp reads a row of them at once.
struct __align__(8) Entry {
    float value;
    int column;
};

struct Top {
    Entry* lists;   // (count, THREADS)
    float* values;  // (n, count)
    long long* indices;
    int count;
    int length;
    float least;    // the last value of a full list
    long long own;  // the row of y that the first row of x is, or -1

    __device__ Entry& at(int i) { return lists[i * THREADS + threadIdx.x]; }
    __device__ void column(const Row& row, int column, float product) {
        if (own >= 0 && column == own + row.number) return;
        const float value = cosine_of(product, row.squares);
        if (length == count && !(value > least)) return;  // columns rise, so of equals the earlier stays
        int i = length < count ? length++ : count - 1;
        for (; i > 0 && at(i - 1).value < value; i--) at(i) = at(i - 1);
        at(i) = {value, column};
        least = at(length - 1).value;
    }
    __device__ void row(const Row& row) {
        int head = 0;
        for (int rank = 0; rank < count; rank++) {
            const bool more = head < length;
            float best = more ? at(head).value : -3.4e38f;
            int column = more ? at(head).column : 0x7fffffff;
            const int own = column;
#pragma unroll
            for (int step = LANES / 2; step > 0; step /= 2) {
                const float value = __shfl_xor_sync(EVERY_LANE, best, step);
                const int other = __shfl_xor_sync(EVERY_LANE, column, step);
                if (value > best || (value == best && other < column)) {
                    best = value;
                    column = other;
                }
            }
            head += more && own == column;
            if (threadIdx.x % LANES == 0 && row.exists) {
                values[row.number * count + rank] = best;
                indices[row.number * count + rank] = column;
            }
        }
        length = 0;
    }
    __device__ void tile(const real*, int, long long, int) {}
};

// values, indices (n, count): most similar first, of equals the lower index; count <= columns; with
// own >= 0 row i of x is row own + i of y and isn't compared with itself, and count < columns. workspace: (blocks,
// count, THREADS) entries, used unless LISTS_SHARED is defined.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    similarity_top(const real* __restrict__ x, const void* __restrict__ y, long long n, int width, int columns,
                   int count, long long own, float* __restrict__ values, long long* __restrict__ indices,
                   Entry* workspace) {
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ Products products;
#ifdef LISTS_SHARED
    Entry* lists = reinterpret_cast<Entry*>(shared + tiles_bytes(columns));
#else
    Entry* lists = workspace + (size_t)blockIdx.x * count * THREADS;
#endif
    const Problem problem = {x, n, width, y, columns, nullptr, true};
    Top work = {lists, values, indices, count, 0, 0.f, own};
    for_all_tiles(problem, products, shared, work);
}
