// One start of k-means in one block, for image_level.cu: lengths, cosines, and greedy k-means++.

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
};
