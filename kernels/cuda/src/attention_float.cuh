// attention_float of attention.cu: float32, 64 numbers a head.
//
// A block processes 64 queries of one head and tiles of 64 keys; keys and then values use the same 16 KB. A thread
// keeps eight queries by four keys, then eight queries by four columns, in registers: it reads three float4 from shared
// memory per 32 multiply-adds. Queries, keys and probabilities are stored with the row index innermost, so that these
// reads are contiguous.

#define ROWS 64

// Write four consecutive numbers of a row, transposed: consecutive lanes write consecutive words.
__device__ __forceinline__ void store_column(float (*tile)[ROWS], int column, int row, float4 four) {
    tile[column][row] = four.x;
    tile[column + 1][row] = four.y;
    tile[column + 2][row] = four.z;
    tile[column + 3][row] = four.w;
}

// Transposed copy of 64 rows.
__device__ __forceinline__ void
load_columns(float (*tile)[ROWS], const float* source, long long step, int first, int rows) {
    int row = threadIdx.x & 63;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int column = 4 * ((threadIdx.x >> 6) + 2 * i);
        float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first + row < rows) four = *reinterpret_cast<const float4*>(source + (first + row) * step + column);
        store_column(tile, column, row, four);
    }
}

// The same, rotated. Numbers i and i + 32 of a row are the coordinates of a point.
__device__ __forceinline__ void rotate_columns(float (*tile)[ROWS], const float* source, long long step, int first,
                                               int rows, const float* rotation) {
    const int row = threadIdx.x & 63;
#pragma unroll 1
    for (int column = 4 * (threadIdx.x >> 6); column < SIZE / 2; column += 8) {
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f), y = x, c = x, s = x;
        if (first + row < rows) {
            const float* from = source + (first + row) * step + column;
            const float* cosine = rotation + (long long)(first + row) * SIZE + column;
            x = *reinterpret_cast<const float4*>(from);
            y = *reinterpret_cast<const float4*>(from + SIZE / 2);
            c = *reinterpret_cast<const float4*>(cosine);
            s = *reinterpret_cast<const float4*>(cosine + SIZE / 2);
        }
        store_column(tile, column, row,
                     make_float4(x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y, x.z * c.z - y.z * s.z,
                                 x.w * c.w - y.w * s.w));
        store_column(tile, column + SIZE / 2, row,
                     make_float4(y.x * c.x + x.x * s.x, y.y * c.y + x.y * s.y, y.z * c.z + x.z * s.z,
                                 y.w * c.w + x.w * s.w));
    }
}

__device__ __forceinline__ void outer_product(float (&sum)[8][4], const float* eight, const float* four) {
    float4 low = *reinterpret_cast<const float4*>(eight), high = *reinterpret_cast<const float4*>(eight + 4);
    float4 right = *reinterpret_cast<const float4*>(four);
    float left[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        sum[i][0] += left[i] * right.x;
        sum[i][1] += left[i] * right.y;
        sum[i][2] += left[i] * right.z;
        sum[i][3] += left[i] * right.w;
    }
}

// Four blocks per multiprocessor limit the compiler to 128 registers, which spills from sm_100 on; three blocks do not.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define FLOAT_BOUNDS __launch_bounds__(128, 3)
#else
#define FLOAT_BOUNDS __launch_bounds__(128)
#endif

extern "C" __global__ void FLOAT_BOUNDS
attention_float(const float* __restrict__ query, const float* __restrict__ key, const float* __restrict__ value,
                float* __restrict__ out, int queries, int keys, long long query_row, long long query_image,
                long long key_row, long long key_image, long long value_row, long long value_image, float scale,
               const float* __restrict__ rotation) {
    __shared__ __align__(16) float query_tile[SIZE][ROWS];
    __shared__ __align__(16) float tile[SIZE][ROWS];  // keys with the row innermost, then values as they come
    __shared__ __align__(
        16) float weights[ROWS][ROWS];  // probabilities by key; groups of eight queries permuted by the key
    const int group = threadIdx.x >> 4, column = (threadIdx.x & 15) * 4, first = blockIdx.x * ROWS;
    const long long width = (long long)gridDim.y * SIZE;
    query += blockIdx.z * query_image + blockIdx.y * SIZE;
    key += blockIdx.z * key_image + blockIdx.y * SIZE;
    value += blockIdx.z * value_image + blockIdx.y * SIZE;
    out += blockIdx.z * queries * width + blockIdx.y * SIZE;

    if (ROTATED)
        rotate_columns(query_tile, query, query_row, first, queries, rotation);
    else
        load_columns(query_tile, query, query_row, first, queries);
    float output[8][4] = {}, largest[8], sum[8];
#pragma unroll
    for (int i = 0; i < 8; i++) largest[i] = LOWEST, sum[i] = 0.0f;

    for (int start = 0; start < keys; start += ROWS) {
        load_columns(tile, key, key_row, start, keys);
        __syncthreads();  // the keys have arrived
        float score[8][4] = {};
#pragma unroll 8
        for (int d = 0; d < SIZE; d++) outer_product(score, &query_tile[d][group * 8], &tile[d][column]);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float most = largest[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (start + column + j >= keys) score[i][j] = LOWEST;
                most = fmaxf(most, score[i][j]);
            }
            // A row of scores is distributed over sixteen consecutive lanes.
#pragma unroll
            for (int step = 8; step > 0; step >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
            float shift = most * scale, shrink = exp2f(largest[i] * scale - shift);
            sum[i] *= shrink;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                score[i][j] = exp2f(score[i][j] * scale - shift);
                sum[i] += score[i][j];
                output[i][j] *= shrink;
            }
            largest[i] = most;
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float* place = &weights[column + j][(group ^ (column >> 2 & 7)) * 8];
            *reinterpret_cast<float4*>(place) = make_float4(score[0][j], score[1][j], score[2][j], score[3][j]);
            *reinterpret_cast<float4*>(place + 4) = make_float4(score[4][j], score[5][j], score[6][j], score[7][j]);
        }
        __syncthreads();  // the probabilities have been computed, the keys are not needed any more
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int row = (threadIdx.x >> 4) + 8 * i;
            float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (start + row < keys) four = *reinterpret_cast<const float4*>(value + (start + row) * value_row + column);
            *reinterpret_cast<float4*>(&tile[row][column]) = four;
        }
        __syncthreads();  // the values have arrived
#pragma unroll 8
        for (int k = 0; k < ROWS; k++) outer_product(output, &weights[k][(group ^ (k >> 2 & 7)) * 8], &tile[k][column]);
        __syncthreads();  // values and probabilities have been used
    }

#pragma unroll
    for (int i = 0; i < 8; i++) {
        float total = sum[i];
#pragma unroll
        for (int step = 8; step > 0; step >>= 1) total += __shfl_xor_sync(0xffffffffu, total, step);
        float share = 1.0f / total;
        int row = first + group * 8 + i;
        if (row < queries)
            *reinterpret_cast<float4*>(out + row * width + column) =
                make_float4(output[i][0] * share, output[i][1] * share, output[i][2] * share, output[i][3] * share);
    }
}
