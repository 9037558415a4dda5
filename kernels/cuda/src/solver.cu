// The fast bilateral solver of Barron and Poole (ECCV 2016) on the simplified bilateral grid.
//
// Minimizes lambda / 2 sum W_ij (x_i - x_j)^2 + sum c_i (x_i - t_i)^2 over maps x: W is the bistochastic bilateral
// affinity of a photograph, t the map to refine, c its confidence. With x = S^T y, where y has a value for each
// occupied vertex of the grid, that is A y = b with A = lambda (D_m - D_n B D_n) + diag(S c) and b = S (c t); B blurs
// by [1 2 1] along five axes.
//
// The grid is built by sorting: the key of a pixel consists of the number of its photograph, then its five bin numbers
// in mixed radix, followed by the index of the pixel in the lowest bits. After sorting, equal bins are adjacent, and a
// running count of the positions where the bins change numbers the vertices in the order of their keys, photograph by
// photograph. Only the device knows the number of vertices: arrays have as many elements as there are pixels, and every
// kernel reads the count. The pixels of a vertex are contiguous and are summed in a fixed order by a warp; no float is
// added atomically, so the same photograph gives the same bits each time, alone or among others of its size. Numbers are
// float64, as on the CPU.
//
// Photographs of a batch are parts of one grid without neighbors in each other. Only the sums of conjugate gradients
// belong to a photograph each: blockIdx.y is the photograph, vertices first[y] to first[y + 1] - 1 are its own, and the
// number of blocks along x depends on its size alone.
//
// Conjugate gradients run without the host. Sums over vertices are stored as one partial sum per block, in a separate
// row for each iteration, and every block of the next kernel, which has the same number of blocks, adds them in the
// same fixed order. Once the residual is small enough, the kernels of the remaining iterations detect this and only
// pass the residual on. An iteration consists of three launches: product, step, turn.
//
// Version history: there is one version, not timed on a GPU yet. Estimate for an H200 and a
// photograph of 640 x 480 (some 20,000 vertices): 0.1 ms for the sort, 2 microseconds for each of 90 small kernels,
// which Python takes longer to launch than the device to run.

#define THREADS 256
#define AXES 5
#define TINY 1e-12  // keeps quotients finite for a vertex without confidence

// ---- The grid ------------------------------------------------------------------------------------

// 1 where a sorted key starts a vertex. The lowest `shift` bits of a key are the pixel.
extern "C" __global__ void __launch_bounds__(256, 4)
mark_vertices(const long long* __restrict__ sorted, int shift, int pixels, int* __restrict__ mark) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < pixels) mark[i] = i == 0 || sorted[i] >> shift != sorted[i - 1] >> shift;
}

// Computes, from the running count of marks, the vertex of each pixel, the bins of each vertex, where the pixels of each
// vertex start in `order`, and the first vertex of each photograph of `each` pixels; behind it the number of vertices.
extern "C" __global__ void __launch_bounds__(256, 4)
number_vertices(const long long* __restrict__ sorted, const int* __restrict__ running, int shift, int pixels, int each,
                int* __restrict__ vertex, int* __restrict__ order, int* __restrict__ start,
                long long* __restrict__ occupied, int* __restrict__ first) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pixels) return;
    int pixel = (int)(sorted[i] & ((1ll << shift) - 1)), v = running[i] - 1;
    vertex[pixel] = v;
    order[i] = pixel;
    if (i == 0 || running[i - 1] != running[i]) {
        start[v] = i;
        occupied[v] = sorted[i] >> shift;
    }
    if (i % each == 0) first[i / each] = v;
    if (i == pixels - 1) {
        start[v + 1] = pixels;
        first[pixels / each] = v + 1;
    }
}

// Sets neighbors[2 d] and [2 d + 1] to the vertices one bin above and below along axis d = blockIdx.y; the array is
// filled with -1 before.
extern "C" __global__ void __launch_bounds__(256, 4)
find_neighbors(const long long* __restrict__ occupied, const int* __restrict__ first, int photographs,
                const long long* __restrict__ strides, int pixels, int* __restrict__ neighbors) {
    const int vertices = first[photographs], axis = blockIdx.y;
    for (int v = blockIdx.x * blockDim.x + threadIdx.x; v < vertices; v += gridDim.x * blockDim.x) {
        long long wanted = occupied[v] + strides[axis];
        int low = v + 1, high = vertices;  // the keys ascend: look for the first that isn't below the wanted one
        while (low < high) {
            int middle = (low + high) >> 1;
            if (occupied[middle] < wanted)
                low = middle + 1;
            else
                high = middle;
        }
        if (low < vertices && occupied[low] == wanted) {
            neighbors[(long long)(2 * axis) * pixels + v] = low;
            neighbors[(long long)(2 * axis + 1) * pixels + low] = v;
        }
    }
}

// ---- Sums ----------------------------------------------------------------------------------------

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

// Place of the block in partial sums (photographs, blocks).
__device__ __forceinline__ int own_partial() { return blockIdx.y * gridDim.x + blockIdx.x; }

// Stores the block's sum of x as its partial sum.
__device__ __forceinline__ void leave_partial(double x, double* room, double* partial) {
    x = warp_sum(x);
    __syncthreads();  // the buffer is free
    if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = x;
    __syncthreads();  // the warps' sums have been stored
    if (threadIdx.x == 0) {
        double total = 0.0;
        for (int i = 0; i < THREADS / 32; i++) total += room[i];
        partial[own_partial()] = total;
    }
}

// Adds the partial sums of the photograph in one warp; every block gets the same bits.
__device__ __forceinline__ double whole(const double* partial) {
    double x = 0.0;
    partial += blockIdx.y * gridDim.x;
    for (int i = threadIdx.x & 31; i < gridDim.x; i += 32) x += partial[i];
    return warp_sum(x);
}

// Computes three sums, one per warp, for all threads of the block.
__device__ __forceinline__ void gather_sums(double* room, const double* a, const double* b, const double* c) {
    int warp = threadIdx.x >> 5;
    if (warp < 3) {
        const double* mine = warp == 0 ? a : warp == 1 ? b : c;
        double x = whole(mine);
        if ((threadIdx.x & 31) == 0) room[warp] = x;
    }
    __syncthreads();  // the sums have been stored
}

// ---- From pixels to vertices and back ------------------------------------------------------------

// Sums over the pixels of each vertex, one warp per vertex: their number, confidence, confidence times target, and the
// initial value.
extern "C" __global__ void __launch_bounds__(256, 4)
splat(const float* __restrict__ target, const double* __restrict__ confidence, const int* __restrict__ order,
      const int* __restrict__ start, const int* __restrict__ first, int photographs, double* __restrict__ mass,
      double* __restrict__ data, double* __restrict__ b, double* __restrict__ y) {
    const int vertices = first[photographs], lane = threadIdx.x & 31;
    for (int v = blockIdx.x * (THREADS / 32) + (threadIdx.x >> 5); v < vertices; v += gridDim.x * (THREADS / 32)) {
        double weight = 0.0, product = 0.0, total = 0.0;
        for (int i = start[v] + lane; i < start[v + 1]; i += 32) {
            double c = confidence[order[i]], t = target[order[i]];
            weight += c;
            product += c * t;
            total += t;
        }
        weight = warp_sum(weight);
        product = warp_sum(product);
        total = warp_sum(total);
        if (lane == 0) {
            double pixels = start[v + 1] - start[v];
            mass[v] = pixels;
            data[v] = weight;
            b[v] = product;
            y[v] = (product + TINY * total) / (weight + TINY * pixels);
        }
    }
}

// Each pixel gets the value of its vertex, clipped to 0..1.
extern "C" __global__ void __launch_bounds__(256, 4)
slice_vertices(const double* __restrict__ y, const int* __restrict__ vertex, int pixels, float* __restrict__ out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < pixels) out[i] = (float)fmin(fmax(y[vertex[i]], 0.0), 1.0);
}

// The sum of x over the neighbors of vertex v. B x is this sum plus 2 x for each axis.
__device__ __forceinline__ double neighbor_sum(const double* x, const int* neighbors, int pixels, int v) {
    double total = 0.0;
#pragma unroll
    for (int i = 0; i < 2 * AXES; i++) {
        int other = neighbors[(long long)i * pixels + v];
        if (other >= 0) total += x[other];
    }
    return total;
}

// A step of the symmetric Sinkhorn iteration, n' = sqrt(n mass / B n), starting with n = 1.
extern "C" __global__ void __launch_bounds__(256, 4)
bistochastic_step(const double* __restrict__ n, const double* __restrict__ mass, const int* __restrict__ neighbors,
                  const int* __restrict__ first, int photographs, int pixels, double* __restrict__ next) {
    const int vertices = first[photographs];
    for (int v = blockIdx.x * THREADS + threadIdx.x; v < vertices; v += gridDim.x * THREADS)
        next[v] = sqrt(n[v] * mass[v] / (2 * AXES * n[v] + neighbor_sum(n, neighbors, pixels, v)));
}

// ---- Conjugate gradients (Saad, Iterative Methods for Sparse Linear Systems, algorithm 9.1) ------
//
// A row of partial sums for each iteration and photograph: `rho` of residual * z, `square` of residual^2, `curve` of direction * A
// direction.

// Computes the sum of the neighbors' n, the diagonal, the first residual b - A y, and the first direction. The row sums
// of D_n B D_n cancel with D_m except for the neighbors: (A x)_v = lambda n_v sum n_j (x_v - x_j) + (S c)_v x_v.
// Therefore a vertex that has neither neighbors nor confidence keeps exactly its initial value, and a constant map is
// a solution.
extern "C" __global__ void __launch_bounds__(256, 4)
solver_start(const double* __restrict__ n, const double* __restrict__ data, const double* __restrict__ b,
             const double* __restrict__ y, const int* __restrict__ neighbors, const int* __restrict__ first,
             int pixels, double smoothness, double* __restrict__ around, double* __restrict__ diagonal,
             double* __restrict__ residual, double* __restrict__ direction, double* __restrict__ scaled,
             double* __restrict__ rho, double* __restrict__ square, double* __restrict__ goal) {
    __shared__ double room[THREADS / 32];
    const int last = first[blockIdx.y + 1];
    double rz = 0.0, rr = 0.0, bb = 0.0;
    for (int v = first[blockIdx.y] + blockIdx.x * THREADS + threadIdx.x; v < last; v += gridDim.x * THREADS) {
        double sum = 0.0, weighted = 0.0;
#pragma unroll
        for (int i = 0; i < 2 * AXES; i++) {
            int other = neighbors[(long long)i * pixels + v];
            if (other >= 0) {
                sum += n[other];
                weighted += n[other] * (y[v] - y[other]);
            }
        }
        double d = fmax(smoothness * n[v] * sum + data[v], TINY);
        double r = b[v] - (smoothness * n[v] * weighted + data[v] * y[v]), z = r / d;
        around[v] = sum;
        diagonal[v] = d;
        residual[v] = r;
        direction[v] = z;
        scaled[v] = n[v] * z;
        rz += r * z;
        rr += r * r;
        bb += b[v] * b[v];
    }
    leave_partial(rz, room, rho);
    leave_partial(rr, room, square);
    leave_partial(bb, room, goal);
}

// image = A direction, and its product with the direction. `scaled` is n * direction.
extern "C" __global__ void __launch_bounds__(256, 4)
solver_product(const double* __restrict__ n, const double* __restrict__ around, const double* __restrict__ data,
               const double* __restrict__ direction, const double* __restrict__ scaled,
               const int* __restrict__ neighbors, const int* __restrict__ first, int pixels, double smoothness,
               double tolerance, const double* __restrict__ square, const double* __restrict__ goal,
               double* __restrict__ image, double* __restrict__ curve) {
    __shared__ double room[THREADS / 32], sums[3];
    gather_sums(sums, square, goal, goal);
    if (sums[0] <= tolerance * tolerance * sums[1]) return;  // all threads of all blocks of a photograph, or none
    const int last = first[blockIdx.y + 1];
    double total = 0.0;
    for (int v = first[blockIdx.y] + blockIdx.x * THREADS + threadIdx.x; v < last; v += gridDim.x * THREADS) {
        double p = direction[v];
        double a = smoothness * n[v] * (around[v] * p - neighbor_sum(scaled, neighbors, pixels, v)) + data[v] * p;
        image[v] = a;
        total += p * a;
    }
    leave_partial(total, room, curve);
}

// Updates y and the residual by a step along the direction, and stores the sums of the next iteration.
extern "C" __global__ void __launch_bounds__(256, 4)
solver_step(const double* __restrict__ direction, const double* __restrict__ image,
            const double* __restrict__ diagonal, const int* __restrict__ first, double tolerance,
            const double* __restrict__ rho, const double* __restrict__ square, const double* __restrict__ curve,
            const double* __restrict__ goal, double* __restrict__ y, double* __restrict__ residual,
            double* __restrict__ next_rho, double* __restrict__ next_square) {
    __shared__ double room[THREADS / 32], sums[3];
    gather_sums(sums, square, goal, rho);
    if (sums[0] <= tolerance * tolerance * sums[1]) {  // converged: pass the sums on
        if (threadIdx.x == 0) next_square[own_partial()] = square[own_partial()];
        return;
    }
    const int last = first[blockIdx.y + 1];
    const double alpha = sums[2] / whole(curve);  // not computed once the solver has converged
    double rz = 0.0, rr = 0.0;
    for (int v = first[blockIdx.y] + blockIdx.x * THREADS + threadIdx.x; v < last; v += gridDim.x * THREADS) {
        y[v] += alpha * direction[v];
        double r = residual[v] - alpha * image[v];
        residual[v] = r;
        rz += r * (r / diagonal[v]);
        rr += r * r;
    }
    leave_partial(rz, room, next_rho);
    leave_partial(rr, room, next_square);
}

// Computes the next direction: the preconditioned residual, made conjugate to the last direction.
extern "C" __global__ void __launch_bounds__(256, 4)
solver_turn(const double* __restrict__ n, const double* __restrict__ residual, const double* __restrict__ diagonal,
            const int* __restrict__ first, double tolerance, const double* __restrict__ rho,
            const double* __restrict__ next_rho, const double* __restrict__ next_square,
            const double* __restrict__ goal, double* __restrict__ direction, double* __restrict__ scaled) {
    __shared__ double sums[3];
    gather_sums(sums, next_square, goal, rho);
    if (sums[0] <= tolerance * tolerance * sums[1]) return;
    const int last = first[blockIdx.y + 1];
    const double beta = whole(next_rho) / sums[2];  // likewise
    for (int v = first[blockIdx.y] + blockIdx.x * THREADS + threadIdx.x; v < last; v += gridDim.x * THREADS) {
        double p = residual[v] / diagonal[v] + beta * direction[v];
        direction[v] = p;
        scaled[v] = n[v] * p;
    }
}
