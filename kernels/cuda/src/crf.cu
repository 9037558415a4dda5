// Gaussian filtering on the permutohedral lattice (Adams, Baek and Davis 2010), and mean field by it (Kraehenbuehl and
// Koltun 2011).
//
// Every point has FEATURES numbers: position, or position and color. The lattice tiles their space by simplices. A
// point distributes its values over the corners of the simplex around it (splat), vertices are mixed with their
// neighbors along each of FEATURES + 1 axes (blur), and the point interpolates its corners (slice): a Gaussian filter.
// Mean field alternates such filters with a softmax over classes.
//
// Vertices are found by hashing. The coordinates of a vertex are packed into one integer in mixed radix, its key; a
// step along an axis changes every key by the same amount. A table of at least twice as many slots as there can be
// corners is filled by atomicCAS with linear probing. Which slot a key gets depends on the order of threads, but
// nothing else does: atomicMin also stores the first entry of each slot, and vertices are numbered in the order of
// their first entries, as on the CPU. The sum over the points of a vertex is computed by one warp in the order of the
// points, because the entries have been sorted by (vertex, entry); no float is added atomically. So the same input
// gives the same bits each time.
//
// The points of several photographs, `each` of them one after another, may share a lattice: their keys are `span` apart,
// so that no vertex belongs to two photographs, nor has a neighbor in another.
//
// Only the device needs to know the number of vertices. Kernels read it; arrays have places for `places` vertices, and
// grids are limited in size, their threads going on to further vertices.
//
// Layout: entry = point * CORNERS + corner. Values are (points, classes) and (vertices, classes), so that the classes
// of a neighbor are contiguous. One thread per entry, slot or value; one warp per vertex in splat.
//
// Version history: there is one version, not timed on a GPU yet. Estimate for an H200, 250 x 188
// pixels and 2 classes: 280,000 entries, 0.1 ms for the sort, 0.1 ms a mean-field step, most of it launches.

#ifndef FEATURES
#define FEATURES 5
#endif
#define CORNERS (FEATURES + 1)  // of a simplex, and also the number of axes of the lattice
#define EMPTY 0xffffffffffffffffull

typedef unsigned long long Key;

// ---- The lattice ---------------------------------------------------------------------------------

__device__ __forceinline__ int first_slot(Key key, int mask) {
    key = (key ^ key >> 31) * 0x7fb5d329728ea185ull;
    key = (key ^ key >> 27) * 0x81dadef4bc2dd44dull;
    return (int)(key >> 33) & mask;
}

// Computes the weight of each entry and the slot of its vertex, for features (FEATURES, points) and the geometry of the
// lattice: scale (FEATURES), stride and origin (CORNERS). `table` is filled with EMPTY before, `touched` with the
// largest int.
extern "C" __global__ void __launch_bounds__(256, 4)
embed(const float* __restrict__ features, int points, int each, const float* __restrict__ scale,
      const long long* __restrict__ stride, const long long* __restrict__ origin, long long span,
      Key* __restrict__ table, int mask, int* __restrict__ touched, int* __restrict__ slot, float* __restrict__ weight) {
    int point = blockIdx.x * blockDim.x + threadIdx.x;
    if (point >= points) return;
    float elevated[CORNERS], above = 0.0f;
#pragma unroll
    for (int i = FEATURES; i > 0; i--) {
        float scaled = features[(long long)(i - 1) * points + point] * scale[i - 1];
        elevated[i] = above - i * scaled;
        above += scaled;
    }
    elevated[0] = above;

    // Coordinates rounded to multiples of D + 1 are a vertex, if they still sum to 0 ...
    float nearest[CORNERS];
    int rank[CORNERS] = {}, excess = 0;
#pragma unroll
    for (int i = 0; i < CORNERS; i++) {
        nearest[i] = rintf(elevated[i] * (1.0f / CORNERS));
        excess += (int)nearest[i];
        nearest[i] *= CORNERS;
    }
#pragma unroll
    for (int i = 0; i < FEATURES; i++)
#pragma unroll
        for (int j = i + 1; j < CORNERS; j++) {
            bool less = elevated[i] - nearest[i] < elevated[j] - nearest[j];
            rank[i] += less;
            rank[j] += !less;
        }
    // ... and if not, the coordinates that rounding changed most go one step back.
    Key key = (Key)(point / each * span), all = 0;
#pragma unroll
    for (int i = 0; i < CORNERS; i++) {
        rank[i] += excess;
        int wrap = rank[i] < 0 ? CORNERS : rank[i] >= CORNERS ? -CORNERS : 0;
        rank[i] += wrap;
        nearest[i] += wrap;
        key += (Key)(stride[i] * ((long long)nearest[i] - origin[i]));
        all += (Key)stride[i];
    }

#pragma unroll
    for (int corner = 0; corner < CORNERS; corner++) {
        // From one corner to the next, one coordinate decreases by D, the one with the highest rank first, and all
        // others increase by 1.
        const int stays = FEATURES - corner, went = corner == 0 ? 0 : FEATURES + 1 - corner;
        float share = corner == 0 ? 1.0f : 0.0f;
        if (corner > 0) key += all;
#pragma unroll
        for (int i = 0; i < CORNERS; i++) {
            float rest = (elevated[i] - nearest[i]) * (1.0f / CORNERS);
            if (rank[i] == stays) share += rest;
            if (rank[i] == went) share -= rest;
            if (corner > 0 && rank[i] == went) key -= (Key)(CORNERS * stride[i]);
        }
        int at = first_slot(key, mask), entry = point * CORNERS + corner;
        while (true) {
            Key found = atomicCAS(&table[at], EMPTY, key);
            if (found == EMPTY || found == key) break;
            at = (at + 1) & mask;
        }
        atomicMin(&touched[at], entry);
        slot[entry] = at;
        weight[entry] = share;
    }
}

// Marks the first entry of each vertex with 1; the running count of the marks numbers the vertices.
extern "C" __global__ void __launch_bounds__(256, 4)
mark_first(const int* __restrict__ slot, const int* __restrict__ touched, int entries, int* __restrict__ mark) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < entries) mark[i] = touched[slot[i]] == i;
}

// Computes the vertex of each entry, and (vertex, entry) as one number to be sorted.
extern "C" __global__ void __launch_bounds__(256, 4)
own_entries(const int* __restrict__ slot, const int* __restrict__ touched, const int* __restrict__ running,
            int entries, int* __restrict__ vertex, long long* __restrict__ owned) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= entries) return;
    int v = running[touched[slot[i]]] - 1;
    vertex[i] = v;
    owned[i] = (long long)v << 32 | i;
}

// Lists the entries of each vertex in order, and where those of each vertex start.
extern "C" __global__ void __launch_bounds__(256) start_segments(const long long* __restrict__ sorted, int entries,
                                                                 int* __restrict__ entry, int* __restrict__ start) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= entries) return;
    int v = (int)(sorted[i] >> 32);
    entry[i] = (int)(sorted[i] & 0xffffffff);
    if (i == 0 || (int)(sorted[i - 1] >> 32) != v) start[v] = i;
    if (i == entries - 1) start[v + 1] = entries;
}

__device__ __forceinline__ int
look_up(Key key, const Key* table, const int* touched, const int* running, int mask, int none) {
    for (int at = first_slot(key, mask); table[at] != EMPTY; at = (at + 1) & mask)
        if (table[at] == key) return running[touched[at]] - 1;
    return none;
}

// Sets neighbor (CORNERS, places, 2) to the previous and next vertex along axis blockIdx.y; the number of vertices means
// none. It is the last of `entries` running counts.
extern "C" __global__ void __launch_bounds__(256, 4)
find_neighbors(const Key* __restrict__ table, const int* __restrict__ touched, const int* __restrict__ running,
                int entries, const long long* __restrict__ stride, int mask, int places, int* __restrict__ neighbor,
                int* __restrict__ count) {
    const int vertices = running[entries - 1];
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at == 0 && blockIdx.y == 0) *count = vertices;
    if (at > mask || table[at] == EMPTY) return;
    Key step = (Key)(-CORNERS * stride[blockIdx.y]);
#pragma unroll
    for (int i = 0; i < CORNERS; i++) step += (Key)stride[i];
    long long place = 2 * ((long long)blockIdx.y * places + running[touched[at]] - 1);
    neighbor[place] = look_up(table[at] - step, table, touched, running, mask, vertices);
    neighbor[place + 1] = look_up(table[at] + step, table, touched, running, mask, vertices);
}

// ---- The filter ----------------------------------------------------------------------------------

// Computes the weighted sum of the values of each vertex's points, one warp per vertex.
extern "C" __global__ void __launch_bounds__(256, 4)
splat(const float* __restrict__ values, int classes, const int* __restrict__ entry, const int* __restrict__ start,
      const float* __restrict__ weight, const int* __restrict__ count, float* __restrict__ out) {
    const int lane = threadIdx.x & 31, warps = blockDim.x >> 5, vertices = *count;
    for (int v = blockIdx.x * warps + (threadIdx.x >> 5); v < vertices; v += gridDim.x * warps)
        for (int c = 0; c < classes; c++) {
            float total = 0.0f;
            for (int i = start[v] + lane; i < start[v + 1]; i += 32)
                total += weight[entry[i]] * values[(long long)(entry[i] / CORNERS) * classes + c];
#pragma unroll
            for (int step = 16; step > 0; step >>= 1) total += __shfl_xor_sync(0xffffffffu, total, step);
            if (lane == 0) out[(long long)v * classes + c] = total;
        }
}

// Filters by [1/2 1 1/2] along one axis.
extern "C" __global__ void __launch_bounds__(256, 4)
blur(const float* __restrict__ values, int classes, const int* __restrict__ neighbor, int axis,
     const int* __restrict__ count, int places, float* __restrict__ out) {
    const int vertices = *count;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < (long long)vertices * classes;
         i += (long long)gridDim.x * blockDim.x) {
        int v = (int)(i / classes), c = (int)(i % classes);
        const int* pair = neighbor + 2 * ((long long)axis * places + v);
        float back = pair[0] < vertices ? values[(long long)pair[0] * classes + c] : 0.0f;
        float ahead = pair[1] < vertices ? values[(long long)pair[1] * classes + c] : 0.0f;
        out[i] = values[i] + 0.5f * (back + ahead);
    }
}

// Adds to each point the weighted sum of its corners times gain.
extern "C" __global__ void __launch_bounds__(256, 4)
slice_add(const float* __restrict__ values, int classes, const int* __restrict__ vertex,
                                    const float* __restrict__ weight, int points, float gain, float* __restrict__ out) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)points * classes) return;
    int point = (int)(i / classes), c = (int)(i % classes);
    float total = 0.0f;
#pragma unroll
    for (int corner = 0; corner < CORNERS; corner++) {
        long long e = (long long)point * CORNERS + corner;
        total += weight[e] * values[(long long)vertex[e] * classes + c];
    }
    out[i] += gain * total;
}

// Softmax over the classes of each point, in place.
extern "C" __global__ void __launch_bounds__(256) softmax_rows(float* __restrict__ values, int points, int classes) {
    int point = blockIdx.x * blockDim.x + threadIdx.x;
    if (point >= points) return;
    float* row = values + (long long)point * classes;
    float most = row[0], sum = 0.0f;
    for (int c = 1; c < classes; c++) most = fmaxf(most, row[c]);
    for (int c = 0; c < classes; c++) {
        row[c] = expf(row[c] - most);
        sum += row[c];
    }
    for (int c = 0; c < classes; c++) row[c] /= sum;
}
