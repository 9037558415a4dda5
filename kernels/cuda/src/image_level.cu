// The image level of a batch of photographs: greedy k-means++ and Lloyd for every start, the foreground rule, the soft
// answer. kernels/reference/image_level.py defines the operation; the host reads nothing in between.
//
// image_level_start: one block for each start of each number of clusters of each photograph.
//   1. length of each row, percentile of the attention by bisection of the bits
//   2. k-means++ with the host's uniform random numbers: prefix sums of the distances, candidate rows copied behind the
//      centroids, and the candidate with the smallest total of distances
//   3. Lloyd until no label changes: cosines, labels, rows sorted by label, sums of rows in that order, move
//   4. attention and border of each cluster, foreground, margins
// image_level_answer: one block for each photograph takes the best start of each number of clusters, and averages.
//
// Rows do not fit into shared memory: each pass streams them from the L2 cache, where a batch fits (13 MB for 32
// photographs of 540 rows of 192 numbers). LANES threads share a row, each of them ROWS rows at a time and COLUMNS
// centroids, which are in shared memory unless they are too large (CENTROIDS_SHARED). The order of every sum depends on
// the data only: the same photograph gives the same bits, alone or in any batch. Products and short sums are float32,
// all longer sums float64.
//
// Set by #define: VECTOR 4 or 1: numbers read at a time, a divisor of the width · CENTROIDS_SHARED.
//
// Version history. None has been timed on a GPU yet: these are estimates for an H200.
//   1. One warp a row, sums by row: each pass waits 540 times for shared memory, 32,000 clocks.
//   2. Rows sorted by label, threads in groups that sum every n-th row of a cluster: 540 rows of 192 numbers take about
//      10,000 clocks for cosines and 5,000 for sums, a block of 25 passes 0.2 ms; two blocks a multiprocessor run a
//      batch of 32 photographs, 256 blocks, at once: 0.4 ms.

#define THREADS 256
// Blocks of a multiprocessor: as many as registers allow without spills.
#ifdef CENTROIDS_SHARED
#define BLOCKS 2
#else
#define BLOCKS 1
#endif
#define WARPS (THREADS / 32)
#define LANES 8
#define ROWS 2
#define COLUMNS (LANES / ROWS)
#define MOST_CLUSTERS 256
#define MOST_CANDIDATES 8
#define EVERY_LANE 0xffffffffu
#define INFINITE 3.402823466e38f

#include "block.cuh"
#include "start.cuh"
#include "lloyd.cuh"

// --- Foreground -------------------------------------------------------------------------------------------------------

// The rule of photographs: clusters that attention prefers and that keep away from the border. One thread.
__device__ void photograph_rule(Room& room, int clusters, double mean_attention, double border_share, double threshold) {
    int occupied = 0, above = 0, best = -1, worst = -1;
    double highest = 0.0, lowest = 0.0;
    for (int c = 0; c < clusters; c++) {
        room.foreground[c] = 0;
        if (room.counts[c] == 0) continue;
        occupied++;
        const double size = room.counts[c], a = room.attention[c] / size / mean_attention,
                     b = room.border[c] / size / border_share, score = log(a + 1e-3) - log(b + 0.1);
        if (best < 0 || score > highest) highest = score, best = c;
        if (worst < 0 || score < lowest) lowest = score, worst = c;
        if (score > threshold) room.foreground[c] = 1, above++;
    }
    if (above == 0) room.foreground[best] = 1;
    else if (above == occupied && occupied > 1) room.foreground[worst] = 0;
}

// The rule of textures: the smallest cluster that is not empty, unless it is the only one. One thread.
__device__ void texture_rule(Room& room, int clusters) {
    int occupied = 0, smallest = -1;
    for (int c = 0; c < clusters; c++) {
        room.foreground[c] = 0;
        if (room.counts[c] == 0) continue;
        occupied++;
        if (smallest < 0 || room.counts[c] < room.counts[smallest]) smallest = c;
    }
    if (occupied > 1) room.foreground[smallest] = 1;
}

__device__ void find_foreground(const Start& start, const float* attention, int grid_rows, int grid_columns,
                                double percent, double threshold, bool texture) {
    Room& room = start.room;
    const int n = start.n, lane = threadIdx.x % 32;
    const double clip = percentile(attention, n, percent, room);
    double total = 0.0;
    for (int row = threadIdx.x; row < n; row += THREADS) total += fmin((double)attention[row], clip);
    total = block_sum(total, room);
    for (int cluster = threadIdx.x / 32; cluster < start.clusters; cluster += WARPS) {
        double sum = 0.0, border = 0.0;
        for (int i = lane; i < room.counts[cluster]; i += 32) {
            const int row = start.order[room.starts[cluster] + i], r = row / grid_columns, c = row % grid_columns;
            sum += fmin((double)attention[row], clip);
            border += r == 0 || r == grid_rows - 1 || c == 0 || c == grid_columns - 1;
        }
        sum = warp_sum(sum);
        border = warp_sum(border);
        if (lane == 0) room.attention[cluster] = sum, room.border[cluster] = (int)border;
    }
    __syncthreads();  // attention and border of each cluster are known
    if (threadIdx.x == 0) {
        const int inner = max(grid_rows - 2, 0) * max(grid_columns - 2, 0);
        if (texture) texture_rule(room, start.clusters);
        else
            photograph_rule(room, start.clusters, fmax(total / n, 2.2250738585072014e-308), (double)(n - inner) / n,
                            threshold);
    }
    __syncthreads();  // the foreground is known
}

// Soft answer: sigmoid of the cosine to the nearest foreground centroid minus that to the nearest background centroid.
__device__ void answer(const Start& start, double temperature, double* soft, unsigned char* hard) {
    const Room& room = start.room;
    for (int row = threadIdx.x; row < start.n; row += THREADS) {
        float inside = -INFINITE, outside = -INFINITE;
        for (int c = 0; c < start.clusters; c++) {
            const float score = start.scores[(size_t)c * start.n + row];
            if (room.foreground[c]) inside = fmaxf(inside, score);
            else outside = fmaxf(outside, score);
        }
        const double margin = (double)inside - (outside == -INFINITE ? 0.0 : (double)outside);
        soft[row] = inside == -INFINITE ? 0.0 : 0.5 + 0.5 * tanh(0.5 * (margin / temperature));
        hard[row] = room.foreground[start.labels[row]];
    }
}

// --- Kernels ----------------------------------------------------------------------------------------------------------

// photographs: (batch, 4): first row, number of rows, rows and columns of the grid · numbers: (n_numbers, 3): number of
// clusters, candidates, first of its draws in a photograph's · draws: (batch, n_draws). Arrays of starts: for each
// photograph (numbers, starts, rows), as the rows of photographs follow each other.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    image_level_start(const float* __restrict__ keys, const float* __restrict__ attention,
                      const long long* __restrict__ photographs, const long long* __restrict__ numbers,
                      const double* __restrict__ draws, int width, int n_numbers, int starts, int n_draws, int columns,
                      int max_iterations, double percent, double threshold, double temperature, int texture,
                      float* scale, float* losses, float* scores, int* labels, int* order, float* centroids,
                      double* sums, double* soft, unsigned char* hard, double* inertia, int* finite) {
#ifdef CENTROIDS_SHARED
    extern __shared__ __align__(16) float shared[];
#endif
    __shared__ Room room;
    const int job = blockIdx.x, number = job / starts % n_numbers, photograph = job / (starts * n_numbers),
              run = job % starts;
    const long long* own = photographs + 4 * photograph;
    const int n = (int)own[1], clusters = (int)numbers[3 * number], candidates = (int)numbers[3 * number + 1];
    const size_t first = own[0], place = first * n_numbers * starts + (size_t)(number * starts + run) * n;
#ifdef CENTROIDS_SHARED
    float* chosen = shared;
#else
    float* chosen = centroids + (size_t)job * columns * width;
#endif
    Lloyd start = {{keys + first * width, n,             width,          clusters,       candidates,
                    chosen,               scale + place, losses + place, scores + place * columns,
                    labels + place,       order + place, sums + (size_t)job * columns * width, room}};
    const bool usable = start.measure();
    if (threadIdx.x == 0) finite[job] = usable;
    if (!usable || clusters >= n + texture) return;
    const double* uniforms = draws + (size_t)photograph * n_draws + numbers[3 * number + 2] +
                             (size_t)run * (1 + (clusters - 1) * candidates);
    start.choose(uniforms);
    const double loss = start.run(max_iterations);
    find_foreground(start, attention + first, (int)own[2], (int)own[3], percent, threshold, texture != 0);
    answer(start, temperature, soft + place, hard + place);
    if (threadIdx.x == 0) inertia[job] = loss;
}

// facts: (batch, 3): mean of |2 soft - 1|, length of the mean unit row, whether all rows are finite.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    image_level_answer(const float* __restrict__ keys, const long long* __restrict__ photographs,
                       const long long* __restrict__ numbers, int width, int n_numbers, int starts, int texture,
                       const float* __restrict__ scale, const double* __restrict__ soft,
                       const unsigned char* __restrict__ hard, const double* __restrict__ inertia,
                       const int* __restrict__ finite, float* __restrict__ soft_answer,
                       float* __restrict__ hard_answer, double* __restrict__ facts) {
    __shared__ Room room;
    const long long* own = photographs + 4 * blockIdx.x;
    const int n = (int)own[1], jobs = n_numbers * starts, job = blockIdx.x * jobs;
    const size_t first = own[0], place = first * jobs;
    const bool usable = finite[job];
    double contrast = 0.0, squares = 0.0;
    for (int row = threadIdx.x; row < n; row += THREADS) {
        double soft_total = 0.0;
        int hard_total = 0, count = 0;
        for (int number = 0; usable && number < n_numbers; number++) {
            if (numbers[3 * number] >= n + texture) continue;
            int best = number * starts;
            for (int run = best + 1; run < (number + 1) * starts; run++)
                if (inertia[job + run] < inertia[job + best]) best = run;
            soft_total += soft[place + (size_t)best * n + row];
            hard_total += hard[place + (size_t)best * n + row];
            count++;
        }
        const double weight = 1.0 / max(count, 1);
        soft_answer[first + row] = (float)(soft_total * weight);
        hard_answer[first + row] = (float)(hard_total * weight);
        contrast += fabs(2.0 * (double)(float)(soft_total * weight) - 1.0);
    }
    contrast = block_sum(contrast, room);
    for (int d = threadIdx.x; d < width; d += THREADS) {
        double sum = 0.0;
#pragma unroll 8
        for (int row = 0; row < n; row++) sum += keys[(first + row) * width + d] * scale[place + row];
        squares += sum / n * (sum / n);
    }
    squares = block_sum(squares, room);
    if (threadIdx.x == 0) {
        facts[3 * blockIdx.x] = contrast / n;
        facts[3 * blockIdx.x + 1] = sqrt(squares);
        facts[3 * blockIdx.x + 2] = usable;
    }
}
