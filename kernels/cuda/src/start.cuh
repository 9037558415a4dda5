// One start of k-means in one block, for image_level.cu: greedy k-means++, then Lloyd's algorithm.

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

    // Each centroid becomes the direction of its rows' sum; it stays if that is 0: it has no rows, or they cancel out.
    __device__ void move() {
        bool empty = false;
        for (int cluster = 0; cluster < clusters; cluster++) empty |= room.counts[cluster] == 0;
        if (empty) fill_empty();
        for (int cluster = 0; cluster < clusters; cluster++) {
            const double* sum = sums + (size_t)cluster * width;
            double squares = 0.0;
            for (int d = threadIdx.x; d < width; d += THREADS) squares += sum[d] * sum[d];
            const double length = sqrt(block_sum(squares, room));
            if (length == 0.0) continue;
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
