// Lloyd's algorithm from the centroids of a start, in one block, for image_level.cu.

struct Lloyd : Start {
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

    // Iterates until no label changes; returns the sum of losses.
    __device__ double run(int max_iterations) {
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
