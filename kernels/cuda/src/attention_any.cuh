// attention_any_half and attention_any_float of attention.cu: any head size.
//
// A warp processes one query: its lanes compute the scores of 32 keys at a time, then divide the columns of the output
// among them. Shared memory contains, for each warp, the query, the output so far and 32 probabilities: 4 (2 S + 32)
// floats per block of four warps.

template <class Number>
__device__ __forceinline__ void
attend(const Number* query, const Number* key, const Number* value, Number* out, int size, int queries, int keys,
       long long query_row, long long query_image, long long key_row, long long key_image, long long value_row,
       long long value_image, float scale, const float* rotation) {
    extern __shared__ float room[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const long long row = (long long)blockIdx.x * 4 + warp, width = (long long)gridDim.y * size;
    float* wanted = room + warp * (2 * size + 32);
    float* output = wanted + size;
    float* weights = output + size;
    if (row >= queries) return;  // whole warps leave, and no barrier of the block follows
    query += blockIdx.z * query_image + row * query_row + blockIdx.y * size;
    key += blockIdx.z * key_image + blockIdx.y * size;
    value += blockIdx.z * value_image + blockIdx.y * size;
    out += (blockIdx.z * queries + row) * width + blockIdx.y * size;
    for (int d = lane; d < size; d += 32) {
        float number = (float)query[d];
        if (ROTATED) {
            const bool second = d >= size / 2;  // the second coordinate of a point
            const int point = second ? d - size / 2 : d;
            const float* cosine = rotation + row * size + point;
            const float other = (float)query[second ? point : d + size / 2], sine = cosine[size / 2];
            number = number * *cosine + other * (second ? sine : -sine);
        }
        wanted[d] = number * scale;
        output[d] = 0.0f;
    }
    __syncwarp();  // the query has been stored
    float largest = LOWEST, sum = 0.0f;
    for (int start = 0; start < keys; start += 32) {
        float score = LOWEST;
        if (start + lane < keys) {
            const Number* other = key + (start + lane) * key_row;
            score = 0.0f;
            for (int d = 0; d < size; d++) score += wanted[d] * (float)other[d];
        }
        float most = fmaxf(largest, score);
#pragma unroll
        for (int step = 16; step > 0; step >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
        float shrink = exp2f(largest - most), weight = exp2f(score - most);
        sum = sum * shrink + weight;
        largest = most;
        weights[lane] = weight;
        __syncwarp();  // the probabilities have been computed
        int count = min(32, keys - start);
        for (int d = lane; d < size; d += 32) {
            float total = output[d] * shrink;
            for (int k = 0; k < count; k++) total += weights[k] * (float)value[(start + k) * value_row + d];
            output[d] = total;
        }
        __syncwarp();  // and used
    }
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    for (int d = lane; d < size; d += 32) out[d] = (Number)(output[d] / sum);
}

#ifndef BFLOAT16
extern "C" __global__ void __launch_bounds__(128, 4)
attention_any_half(const __half* __restrict__ query, const __half* __restrict__ key,
                   const __half* __restrict__ value, __half* __restrict__ out, int size, int queries, int keys,
                   long long query_row, long long query_image, long long key_row, long long key_image,
                   long long value_row, long long value_image, float scale, const float* __restrict__ rotation) {
    attend(query, key, value, out, size, queries, keys, query_row, query_image, key_row, key_image, value_row,
           value_image, scale, rotation);
}
#endif

extern "C" __global__ void __launch_bounds__(128, 4)
attention_any_float(const float* __restrict__ query, const float* __restrict__ key, const float* __restrict__ value,
                    float* __restrict__ out, int size, int queries, int keys, long long query_row,
                    long long query_image, long long key_row, long long key_image, long long value_row,
                    long long value_image, float scale, const float* __restrict__ rotation) {
    attend(query, key, value, out, size, queries, keys, query_row, query_image, key_row, key_image, value_row,
           value_image, scale, rotation);
}
