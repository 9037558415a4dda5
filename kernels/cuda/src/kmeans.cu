// k-means: one Lloyd iteration's pass over the data, the assignment alone, and the distances of k-means++.
//
// kmeans_step reads each row of x once. It finds the nearest centroid (cosine: rows brought to unit length on the fly,
// loss 1 - cosine; euclidean: `shift` subtracted on the fly, loss the squared distance, for rows near their centroid
// from the differences themselves; ties to the lower index), and adds the row to its cluster's sum. Every block sums on
// its own, in an order that the data alone decide; reduce_blocks adds the blocks up. No atomics on floats anywhere: the
// same input gives the same bits twice on one GPU.
//
// The work of a block (tiles.cuh has the products; ROWS, GROUP and the rest are chosen by kmeans.py for K, D and the
// GPU):
//   1. products of the tile's rows with the centroids, tensor cores; the next tile comes by cp.async meanwhile
//   2. nearest centroid: the LANES threads of a row go through the columns, then agree by shuffles
//   3. the tile's rows are ranked by label, and a thread adds up two numbers of the width over the rows in that order:
//      it keeps the sum of a run of equal labels in registers, and touches the cluster's sum once a run
//   Cluster sums lie in shared memory where they fit, else in the block's own part of global memory, which the
//   second-level cache holds.
//
// What each version gained. None has been timed on a GPU yet: these are counts of clocks of one multiprocessor a row at
// D = 384, for an H200. Its copy rate, 4.3 TB/s, allows 82 of them in float32 and 41 in float16; the aims are 103 and
// 59 clocks (80 and 70 %) for K <= 8, 137 and 69 clocks (60 %) for K = 27.
//   1. The textbook's tile of 64 rows by 64 centroids in plain multiply-adds, sums by atomics: 214 clocks of arithmetic
//      whatever K is.
//   2. GROUP = 8 or 32 for small K: 27 and 107 clocks of arithmetic, but shared memory takes 60 to 130 more, because
//      each number of a centroid fetched serves too few rows.
//   3. Tensor cores without loss of accuracy: the products cost 14 clocks (K <= 8) and 58 (K <= 32) in float32, 5 and
//      20 in float16; reading fragments 12 + 12 (K <= 8) and 24 + 24 (K <= 32) clocks of shared memory, half as much in
//      float16.
//   4. Sums over ranked rows: 12 clocks to read the tile again, some 5 for runs at K <= 8 and 10 at K = 27, where
//      adding row by row took 36.
//   5. Less waiting: ranks counted by all threads instead of one warp, counts of rows with the ranks instead of one
//      thread after the other (32 x 60 clocks of one thread's loads and stores, while the others were idle), eight rows
//      fetched before they are added.
//   6. Second stage in one round of loads, not three: counts and loss have threads of their own, and eight loads are
//      under way instead of four: some 4 microseconds an iteration instead of 17.
//   7. Each chunk's sum leaves the tensor cores, which cut it off where a float would be rounded, and is added in plain
//      arithmetic: 1.5 clocks more (K <= 8) and 6 (K <= 32) in float32, half as many in float16.
//   Throughput allows about 55 clocks at K <= 8 and 90 at K = 27 in float32, 30 and 45 in float16. With one block a
//   multiprocessor, though, latencies add up from barrier to barrier: an estimated 2,000 clocks a tile of 32 rows at K
//   <= 8 in float32, of 3,300 that the aim allows, and 4,000 of 4,400 at K = 27; in float16, with 64 rows, 2,500 of
//   3,800 and 3,600 of 4,400. Whether tiles of 16 rows and two blocks a multiprocessor are better is the first thing to
//   try on a GPU.

#include "tiles.cuh"

// A row of the tile in the order of labels.
struct __align__(16) Member {
    int row, label;
    float scale;
    int unused;
};
struct Outcome {
    Member members[ROWS];
    int labels[ROWS];
    float scales[ROWS];
    double losses[ROWS];
};

__device__ __forceinline__ float inverse_length(float squares) { return squares > 0.f ? 1.f / sqrtf(squares) : 0.f; }

// NaN for a row that isn't finite, and then its squares aren't either.
__device__ __forceinline__ float loss_of(bool cosine, float product, float squares, float constant) {
    if (!(squares <= 3.402823466e38f)) return __int_as_float(0x7fc00000);
    return cosine ? 1.f - product * inverse_length(squares) : fmaxf(squares + constant - 2.f * product, 0.f);
}

// Whether a squared distance is so small beside what it was computed from that too few of its digits are right. Never
// for a row far from its centroid; some 1e-6 of these sums is rounding.
__device__ __forceinline__ bool cancels(float loss, float product, float squares, float constant) {
    return 16.f * loss < squares + fabsf(constant) + 2.f * fabsf(product);
}

// Finds the nearest column of each row, and adds rows up by it.
struct Nearest {
    const Problem& problem;
    Outcome& outcome;
    const float* constants;
    int* labels;
    float *losses, *sums;  // sums: (K, width) of this block, or null
    int* counts;           // (K,) of this block
    bool cosine;
    float best_rank, best_product;
    int best;
    double total;  // of the losses of the rows this thread looks after

    __device__ void forget() {
        best = 0x7fffffff;
        best_rank = 3.4e38f;
        best_product = 0.f;
    }
    // Within a row, distances rise with this: its own length doesn't matter.
    __device__ void column(const Row&, int column, float product) {
        const float rank = cosine ? -product : constants[column] - 2.f * product;
        if (rank < best_rank || best == 0x7fffffff) {
            best_rank = rank;
            best_product = product;
            best = column;
        }
    }
    __device__ void row(const Row& row) {
#pragma unroll
        for (int step = LANES / 2; step > 0; step /= 2) {
            const float rank = __shfl_xor_sync(EVERY_LANE, best_rank, step),
                        product = __shfl_xor_sync(EVERY_LANE, best_product, step);
            const int column = __shfl_xor_sync(EVERY_LANE, best, step);
            if (rank < best_rank || (rank == best_rank && column < best)) {
                best_rank = rank;
                best_product = product;
                best = column;
            }
        }
        // Of a row with NaN the threads may think differently: the first decides.
        best = __shfl_sync(EVERY_LANE, best, threadIdx.x & 31 & -LANES);
        const float constant = cosine || !row.exists ? 0.f : constants[best];
        float loss = loss_of(cosine, best_product, row.squares, constant);
        const bool rough = !cosine && row.exists && cancels(loss, best_product, row.squares, constant);
        if (__any_sync(EVERY_LANE, rough)) {
            float exact = rough ? squared_distance(problem, row, best, threadIdx.x % LANES, LANES) : 0.f;
#pragma unroll
            for (int step = LANES / 2; step > 0; step /= 2) exact += __shfl_xor_sync(EVERY_LANE, exact, step);
            if (rough) loss = exact;
        }
        if (threadIdx.x % LANES == 0 && row.exists) {
            labels[row.number] = best;
            losses[row.number] = loss;
            total += loss;
            outcome.labels[threadIdx.x / LANES] = best;
            outcome.scales[threadIdx.x / LANES] = cosine ? inverse_length(row.squares) * row.lift : 1.f;
        }
        forget();
    }
    __device__ void tile(const real* tile, int pitch, long long, int rows) {
        if (!sums) return;
        __syncthreads();  // all labels of the tile are there
        rank(rows);
        __syncthreads();  // the members are in order
#ifdef TENSOR_CORES
        for (int column = 2 * threadIdx.x; column < WIDTH; column += 2 * THREADS) add_pair(tile, pitch, rows, column);
#else
        for (int column = threadIdx.x; column < problem.width; column += THREADS) add_one(tile, pitch, rows, column);
#endif
    }
    // A row's place is the number of rows with a lower label, or the same and a lower number. Its LANES threads count
    // together, three numbers in one word. The first row of each label adds the label's rows to the block's count.
    __device__ __forceinline__ void rank(int rows) {
        const int row = threadIdx.x / LANES, label = outcome.labels[min(row, rows - 1)];
        int seen = 0;
        for (int i = threadIdx.x % LANES; i < rows; i += LANES) {
            const int other = outcome.labels[i];
            seen += other < label ? 1 : other > label ? 0 : i < row ? 0x10100 : 0x10000;
        }
#pragma unroll
        for (int step = LANES / 2; step > 0; step /= 2) seen += __shfl_xor_sync(EVERY_LANE, seen, step);
        if (threadIdx.x % LANES != 0 || row >= rows) return;
        const int lower = seen & 0xff, earlier = seen >> 8 & 0xff, same = seen >> 16;
        outcome.members[lower + earlier] = {row, label, outcome.scales[row], 0};
        if (earlier == 0) counts[label] += same;
    }
    // Eight rows at a time are fetched before any is added, because a sum's store would hold back the next row's load.
    __device__ __forceinline__ void add_pair(const real* tile, int pitch, int rows, int column) {
        const float2 offset = problem.shift ? load_pair(problem.shift + column) : make_float2(0.f, 0.f);
        float2 sum = make_float2(0.f, 0.f);
        int current = outcome.members[0].label;
        for (int first = 0; first < rows; first += 8) {
            Member members[8];
            float2 values[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                members[i] = outcome.members[min(first + i, rows - 1)];
                values[i] = load_pair(tile + members[i].row * pitch + column);
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (first + i >= rows) continue;
                if (members[i].label != current) {
                    flush_pair(current, column, sum);
                    sum = make_float2(0.f, 0.f);
                    current = members[i].label;
                }
                sum.x = fmaf(values[i].x - offset.x, members[i].scale, sum.x);
                sum.y = fmaf(values[i].y - offset.y, members[i].scale, sum.y);
            }
        }
        flush_pair(current, column, sum);
    }
    __device__ __forceinline__ void flush_pair(int label, int column, float2 sum) {
        float2* place = reinterpret_cast<float2*>(sums + (size_t)label * problem.width + column);
        const float2 old = *place;
        *place = make_float2(old.x + sum.x, old.y + sum.y);
    }
    __device__ __forceinline__ void add_one(const real* tile, int pitch, int rows, int column) {
        const float offset = problem.shift ? problem.shift[column] : 0.f;
        for (int i = 0; i < rows; i++) {
            const Member member = outcome.members[i];
            float* place = sums + (size_t)member.label * problem.width + column;
            *place = fmaf(load_one(tile + (size_t)member.row * pitch + column) - offset, member.scale, *place);
        }
    }
};

// x (n, width); y and constants: the centroids from prepare_columns. labels, losses (n,). For each block: block_sums
// (K, width), block_counts (K,), block_loss.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    kmeans_step(const real* __restrict__ x, const void* __restrict__ y, const float* __restrict__ constants,
                const float* __restrict__ shift, long long n, int width, int columns, int cosine,
                int* __restrict__ labels, float* __restrict__ losses, float* __restrict__ block_sums,
                int* __restrict__ block_counts, double* __restrict__ block_loss) {
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ Products products;
    __shared__ Outcome outcome;
    __shared__ int counts[256];
#ifdef WIDTH
    width = WIDTH;
#endif
    const int size = columns * width;
    float* own = block_sums + (size_t)blockIdx.x * size;
#ifdef SUMS_SHARED
    float* sums = reinterpret_cast<float*>(shared + tiles_bytes(columns));
#else
    float* sums = own;
#endif
    for (int i = threadIdx.x; i < size; i += THREADS) sums[i] = 0.f;
    counts[threadIdx.x] = 0;
    __syncthreads();
    const Problem problem = {x, n, width, y, columns, shift, cosine != 0};
    Nearest work = {problem, outcome, constants, labels, losses, sums, counts, cosine != 0, 0.f, 0.f, 0, 0.0};
    work.forget();
    for_all_tiles(problem, products, shared, work);

    if (threadIdx.x % LANES == 0) outcome.losses[threadIdx.x / LANES] = work.total;
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0.0;
        for (int i = 0; i < ROWS; i++) total += outcome.losses[i];
        block_loss[blockIdx.x] = total;
    }
    if (threadIdx.x < columns) block_counts[(size_t)blockIdx.x * columns + threadIdx.x] = counts[threadIdx.x];
#ifdef SUMS_SHARED
    for (int i = threadIdx.x; i < size; i += THREADS) own[i] = sums[i];
#endif
}

// The second stage: what the blocks have summed, block by block in float64. One thread a number of the sums, then one a
// count, then one for the loss. Eight strands, so that eight loads are under way; then the tree's last levels.
template <class Number, class Sum>
__device__ __forceinline__ Sum sum_over_blocks(const Number* first, int blocks, int stride) {
    Sum strands[8] = {};
    for (int block = 0; block < blocks; block += 8)
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (block + j < blocks) strands[j] += first[(size_t)(block + j) * stride];
    return ((strands[0] + strands[1]) + (strands[2] + strands[3])) +
           ((strands[4] + strands[5]) + (strands[6] + strands[7]));
}

extern "C" __global__ void __launch_bounds__(128)
    reduce_blocks(const float* __restrict__ block_sums, const int* __restrict__ block_counts,
                  const double* __restrict__ block_loss, int blocks, int size, int columns, double* __restrict__ sums,
                  long long* __restrict__ counts, double* __restrict__ loss) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i < size)
        sums[i] = sum_over_blocks<float, double>(block_sums + i, blocks, size);
    else if (i < size + columns)
        counts[i - size] = sum_over_blocks<int, long long>(block_counts + (i - size), blocks, columns);
    else if (i == size + columns)
        *loss = sum_over_blocks<double, double>(block_loss, blocks, 1);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    kmeans_assign(const real* __restrict__ x, const void* __restrict__ y, const float* __restrict__ constants,
                  const float* __restrict__ shift, long long n, int width, int columns, int cosine,
                  int* __restrict__ labels, float* __restrict__ losses) {
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ Products products;
    __shared__ Outcome outcome;
#ifdef WIDTH
    width = WIDTH;
#endif
    const Problem problem = {x, n, width, y, columns, shift, cosine != 0};
    Nearest work = {problem, outcome, constants, labels, losses, nullptr, nullptr, cosine != 0, 0.f, 0.f, 0, 0.0};
    work.forget();
    for_all_tiles(problem, products, shared, work);
}

// k-means++: the loss of every row if a candidate joined the centroids chosen so far.
struct Closer {
    const Problem& problem;
    const float *constants, *nearest;  // nearest (n,), or null before the first centroid
    float* losses;                     // (n, columns)
    int columns;
    bool cosine;
    __device__ void column(const Row& row, int column, float product) {
        const float constant = cosine ? 0.f : constants[column];
        float loss = loss_of(cosine, product, row.squares, constant);
        if (!cosine && cancels(loss, product, row.squares, constant))
            loss = squared_distance(problem, row, column, 0, 1);
        if (loss < 0.f) loss = 0.f;  // not fmaxf, which would hide NaN
        losses[row.number * columns + column] = nearest ? fminf(loss, nearest[row.number]) : loss;
    }
    __device__ void row(const Row&) {}
    __device__ void tile(const real*, int, long long, int) {}
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    kmeans_closer(const real* __restrict__ x, const void* __restrict__ y, const float* __restrict__ constants,
                  const float* __restrict__ shift, long long n, int width, int columns, int cosine,
                  const float* __restrict__ nearest, float* __restrict__ losses) {
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ Products products;
#ifdef WIDTH
    width = WIDTH;
#endif
    const Problem problem = {x, n, width, y, columns, shift, cosine != 0};
    Closer work = {problem, constants, nearest, losses, columns, cosine != 0};
    for_all_tiles(problem, products, shared, work);
}
