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

// --- One start of k-means ---------------------------------------------------------------------------------------------

struct Start {
    const float* x;  // (n, width), of any length
    int n, width, clusters, candidates;
    float *centroids;         // (clusters + candidates - 1, width): unit rows
    float *scale, *losses;    // (n,): 1 / length or 0; distance to the nearest centroid
    float* scores;            // (columns, n): cosines
    int *labels, *order;      // (n,): clusters; rows sorted by cluster
    double* sums;             // (clusters, width)
    Room& room;

    // Whether all rows are finite.
    __device__ bool measure() {
        bool bad = false;
        const int lane = threadIdx.x % LANES;
        for (int first = 0; first < n; first += THREADS / LANES) {
            const int row = first + threadIdx.x / LANES;
            float squares = 0.f;
            for (int d = lane * VECTOR; d < width; d += LANES * VECTOR) {
                const Vector value = load(x + (size_t)min(row, n - 1) * width + d);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) squares = fmaf(value.v[i], value.v[i], squares);
            }
#pragma unroll
            for (int step = LANES / 2; step > 0; step /= 2) squares += __shfl_xor_sync(EVERY_LANE, squares, step);
            if (row >= n || lane != 0) continue;
            scale[row] = squares > 0.f ? 1.f / sqrtf(squares) : 0.f;
            bad |= !(squares <= INFINITE);
        }
        return !__syncthreads_or(bad);
    }

    __device__ void copy_row(int slot, int row) {
        const float factor = scale[row];
        for (int d = threadIdx.x; d < width; d += THREADS)
            centroids[slot * width + d] = x[(size_t)row * width + d] * factor;
    }

    // Cosines of all rows with some centroids.
    __device__ void cosines(const float* columns, int count) {
        const int lane = threadIdx.x % LANES;
        for (int first = 0; first < n; first += THREADS / LANES * ROWS) {
            const int own = first + threadIdx.x / LANES * ROWS;
            const float* rows[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) rows[r] = x + (size_t)min(own + r, n - 1) * width;
            for (int column = 0; column < count; column += COLUMNS) {
                float products[ROWS][COLUMNS] = {};
                for (int d = lane * VECTOR; d < width; d += LANES * VECTOR) {
                    Vector left[ROWS];
#pragma unroll
                    for (int r = 0; r < ROWS; r++) left[r] = load(rows[r] + d);
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) {
                        const Vector right = load(columns + min(column + c, count - 1) * width + d);
#pragma unroll
                        for (int r = 0; r < ROWS; r++)
#pragma unroll
                            for (int i = 0; i < VECTOR; i++)
                                products[r][c] = fmaf(left[r].v[i], right.v[i], products[r][c]);
                    }
                }
#pragma unroll
                for (int r = 0; r < ROWS; r++)
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) {
                        float product = products[r][c];
#pragma unroll
                        for (int step = LANES / 2; step > 0; step /= 2)
                            product += __shfl_xor_sync(EVERY_LANE, product, step);
                        if (lane == r * COLUMNS + c && own + r < n && column + c < count)
                            scores[(size_t)(column + c) * n + own + r] = product * scale[own + r];
                    }
            }
        }
        __syncthreads();  // all cosines have been computed
    }

    __device__ __forceinline__ float closer(int candidate, int row) {
        return fminf(fmaxf(1.f - scores[(size_t)candidate * n + row], 0.f), losses[row]);
    }

    // Draws rows with probability proportional to their losses.
    __device__ void draw(const double* uniforms) {
        const int each = (n + THREADS - 1) / THREADS, first = min((int)threadIdx.x * each, n),
                  last = min(first + each, n), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        double sum = 0.0;
        for (int row = first; row < last; row++) sum += losses[row];
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const double before = __shfl_up_sync(EVERY_LANE, sum, step);
            if (lane >= step) sum += before;
        }
        if (lane == 31) room.sums[warp] = sum;
        __syncthreads();  // the warps' distances have been stored
        double before = 0.0;
        for (int i = 0; i < warp; i++) before += room.sums[i];
        room.ends[threadIdx.x] = before + sum;
        __syncthreads();  // all prefix sums have been computed
        if (threadIdx.x < candidates) {
            const double target = uniforms[threadIdx.x] * room.ends[THREADS - 1];
            int low = 0, high = THREADS;  // the first thread whose prefix sum exceeds the target
            while (low < high) {
                const int middle = (low + high) / 2;
                if (room.ends[middle] > target) high = middle;
                else low = middle + 1;
            }
            // If every row coincides with a centroid, the total is 0 and any row will do.
            int row = n - 1;
            double running = low > 0 ? room.ends[low - 1] : 0.0;
            for (int i = low * each, end = min(i + each, n); i < end; i++) {
                row = i;
                running += losses[i];
                if (running > target) break;
            }
            room.candidates[threadIdx.x] = row;
        }
        __syncthreads();  // the candidates have been drawn
    }

    // Greedy k-means++. `draws`: the first row, then `candidates` uniform numbers for each further centroid.
    __device__ void choose(const double* draws) {
        copy_row(0, (int)draws[0]);
        __syncthreads();  // the first centroid has been copied
        cosines(centroids, 1);
        for (int row = threadIdx.x; row < n; row += THREADS) losses[row] = fmaxf(1.f - scores[row], 0.f);
        for (int chosen = 1; chosen < clusters; chosen++) {
            __syncthreads();  // the losses have been updated; the centroid has been copied
            draw(draws + 1 + (chosen - 1) * candidates);
            for (int i = 0; i < candidates; i++) copy_row(chosen + i, room.candidates[i]);
            __syncthreads();  // the candidates have been copied
            cosines(centroids + chosen * width, candidates);
            int best = 0;
            double least = 0.0;
            for (int i = 0; i < candidates; i++) {
                double total = 0.0;
                for (int row = threadIdx.x; row < n; row += THREADS) total += closer(i, row);
                total = block_sum(total, room);
                if (i == 0 || total < least) least = total, best = i;
            }
            for (int row = threadIdx.x; row < n; row += THREADS) losses[row] = closer(best, row);
            for (int d = threadIdx.x; d < width; d += THREADS)
                centroids[chosen * width + d] = centroids[(chosen + best) * width + d];
        }
        __syncthreads();  // all centroids have been chosen
    }

    // Nearest centroid of each row, ties to the lower one. Whether any label has changed, and the sum of losses.
    __device__ bool assign(double* inertia) {
        cosines(centroids, clusters);
        bool changed = false;
        double total = 0.0;
        for (int row = threadIdx.x; row < n; row += THREADS) {
            int best = 0;
            float largest = scores[row];
            for (int c = 1; c < clusters; c++) {
                const float score = scores[(size_t)c * n + row];
                if (score > largest) largest = score, best = c;
            }
            changed |= labels[row] != best;
            labels[row] = best;
            losses[row] = 1.f - largest;
            total += losses[row];
        }
        *inertia = block_sum(total, room);
        sort();
        return __syncthreads_or(changed);  // the rows have been sorted
    }

    // Rows by cluster, those of a cluster in their order. A warp goes over all rows for each of its clusters.
    __device__ void sort() {
        const int lane = threadIdx.x % 32;
        for (int cluster = threadIdx.x / 32; cluster < clusters; cluster += WARPS) {
            int count = 0;
            for (int first = 0; first < n; first += 32) {
                const bool mine = first + lane < n && labels[first + lane] == cluster;
                count += __popc(__ballot_sync(EVERY_LANE, mine));
            }
            if (lane == 0) room.counts[cluster] = count;
        }
        __syncthreads();  // the rows of each cluster have been counted
        if (threadIdx.x == 0)
            for (int cluster = 0, total = 0; cluster < clusters; total += room.counts[cluster++])
                room.starts[cluster] = total;
        __syncthreads();  // the first place of each cluster is known
        for (int cluster = threadIdx.x / 32; cluster < clusters; cluster += WARPS) {
            int place = room.starts[cluster];
            for (int first = 0; first < n; first += 32) {
                const bool mine = first + lane < n && labels[first + lane] == cluster;
                const unsigned all = __ballot_sync(EVERY_LANE, mine);
                if (mine) order[place + __popc(all & ((1u << lane) - 1))] = first + lane;
                place += __popc(all);
            }
        }
    }

    // Sum of some numbers of every `step`-th row of a cluster. Four rows are loaded before they are added.
    __device__ __forceinline__ void add_rows(int cluster, int offset, int step, int d, double* total) {
        const int last = room.starts[cluster] + room.counts[cluster];
#pragma unroll
        for (int i = 0; i < VECTOR; i++) total[i] = 0.0;
        for (int first = room.starts[cluster] + offset; first < last; first += 4 * step) {
            Vector values[4];
            float factors[4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const int place = first + r * step, row = order[min(place, last - 1)];
                factors[r] = place < last ? scale[row] : 0.f;
                values[r] = load(x + (size_t)row * width + d);
            }
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                float sum = 0.f;
#pragma unroll
                for (int r = 0; r < 4; r++) sum = fmaf(values[r].v[i], factors[r], sum);
                total[i] += sum;
            }
        }
    }

    // Sum of the rows of each cluster. Where threads are left, several groups of them share the rows of a cluster.
    __device__ void add() {
        const int pieces = width / VECTOR, groups = max(THREADS / pieces, 1);
        double total[VECTOR];
        for (int cluster = 0; cluster < clusters; cluster++) {
            double* target = sums + (size_t)cluster * width;
            if (groups == 1) {
                for (int piece = threadIdx.x; piece < pieces; piece += THREADS) {
                    add_rows(cluster, 0, 1, piece * VECTOR, total);
#pragma unroll
                    for (int i = 0; i < VECTOR; i++) target[piece * VECTOR + i] = total[i];
                }
                continue;
            }
            const int group = threadIdx.x / pieces, d = threadIdx.x % pieces * VECTOR;
            if (group < groups) {
                add_rows(cluster, group, groups, d, total);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) room.parts[group * width + d + i] = total[i];
            }
            __syncthreads();  // the groups' sums have been stored
            for (int column = threadIdx.x; column < width; column += THREADS) {
                double sum = 0.0;
                for (int part = 0; part < groups; part++) sum += room.parts[part * width + column];
                target[column] = sum;
            }
            __syncthreads();  // the groups' sums have been used
        }
        __syncthreads();  // all rows have been added
    }

    // Each empty cluster takes over the row farthest from its centroid, ties to the lower row, but never the last row
    // of a cluster, nor a row of zeros, which has no direction.
    __device__ void fill_empty() {
        unsigned long long before = ~0ull;
        for (int tried = 0, empty = 0; tried < clusters; tried++) {
            while (empty < clusters && room.counts[empty] > 0) empty++;
            if (empty == clusters) break;
            unsigned long long farthest = 0;
            for (int row = threadIdx.x; row < n; row += THREADS) {
                const unsigned long long key =
                    (unsigned long long)ordered(losses[row]) << 32 | (0xffffffffu - (unsigned)row);
                if (scale[row] > 0.f && key < before) farthest = max(farthest, key);
            }
            before = block_max(farthest, room);
            if (before == 0) break;
            const int row = (int)(0xffffffffu - (unsigned)before), label = labels[row];
            if (room.counts[label] == 1) continue;
            for (int d = threadIdx.x; d < width; d += THREADS) {
                const float value = x[(size_t)row * width + d] * scale[row];
                sums[(size_t)label * width + d] -= value;
                sums[(size_t)empty * width + d] = value;
            }
            __syncthreads();  // the counts have been read
            if (threadIdx.x == 0) room.counts[label]--, room.counts[empty] = 1;
            __syncthreads();  // the row has moved
        }
    }

    // Each centroid becomes the direction of its rows' sum; it stays if it has no rows, or they cancel out.
    __device__ void move() {
        bool empty = false;
        for (int cluster = 0; cluster < clusters; cluster++) empty |= room.counts[cluster] == 0;
        if (empty) fill_empty();
        for (int cluster = 0; cluster < clusters; cluster++) {
            const double* sum = sums + (size_t)cluster * width;
            double squares = 0.0;
            for (int d = threadIdx.x; d < width; d += THREADS) squares += sum[d] * sum[d];
            const double length = sqrt(block_sum(squares, room));
            if (room.counts[cluster] == 0 || length == 0.0) continue;
            for (int d = threadIdx.x; d < width; d += THREADS)
                centroids[cluster * width + d] = (float)(sum[d] / length);
        }
        __syncthreads();  // all centroids have moved
    }

    // Lloyd's algorithm; returns the sum of losses.
    __device__ double lloyd(int max_iterations) {
        for (int row = threadIdx.x; row < n; row += THREADS) labels[row] = -1;
        double inertia = 0.0, previous = 0.0;
        for (int moves = 0;; moves++) {
            const bool changed = assign(&inertia);
            if (moves == max_iterations || (moves > 0 && (!changed || previous <= inertia))) return inertia;
            previous = inertia;
            add();
            move();
        }
    }
};

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
    Start start = {keys + first * width, n,           width,         clusters,      candidates,
                   chosen,               scale + place, losses + place, scores + place * columns,
                   labels + place,       order + place, sums + (size_t)job * columns * width, room};
    const bool usable = start.measure();
    if (threadIdx.x == 0) finite[job] = usable;
    if (!usable || clusters >= n + texture) return;
    const double* uniforms = draws + (size_t)photograph * n_draws + numbers[3 * number + 2] +
                             (size_t)run * (1 + (clusters - 1) * candidates);
    start.choose(uniforms);
    const double loss = start.lloyd(max_iterations);
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
