// Preprocessing of photographs for the network, and postprocessing of its scores to a map of the photograph's size.
//
//   resample                          Pillow's antialiased resize, one axis a launch
//   normalize_float, normalize_half   8-bit color to the input of the network, channels first
//   bilinear, to_fixed_point          enlarge scores; convert a map to 16 bits
//   color_keys                        bins of position, luma and chroma: the solver's grid
//   start_labels, join_labels, measure_labels, summarize_labels, cap_small   components and their cleaning
//
// Layout: one thread per output, consecutive threads on consecutive memory; photographs are (H, W, 3) bytes with fewer
// than 2^31 pixels. These kernels are bound by memory or launch overhead. Tables that depend on sizes only (filter
// weights, bilinear neighbors) are computed in float64 on the host, so that results agree with the CPU: resample,
// normalize, bilinear, to_fixed_point, color_keys and the labels to the last bit.
// __fmul_rn and __fadd_rn prevent the compiler from fusing operations that NumPy rounds separately.
//
// Version history: there is one version, not timed on a GPU yet. Estimate for an H200: a photograph
// of 12 megapixels is read once by the first pass of resample (36 MB, 0.01 ms at the rate of a copy; the many taps of
// each output are read from the L1 cache), and its map is written once.

// ---- Resize --------------------------------------------------------------------------------------

// One axis of Pillow's resize of 8-bit images: source (outer, length, inner) to out (outer, size, inner). Weights are
// in fixed point with 22 fractional bits, a row of `taps` for each output; first[i] is the input of the first weight of
// row i. Horizontally: outer = height, inner = 3. Vertically: outer = 1, inner = 3 * width. blockIdx.y is `outer`.
extern "C" __global__ void __launch_bounds__(256, 4)
resample(const unsigned char* __restrict__ source, const int* __restrict__ first, const int* __restrict__ weights,
         int taps, int outer, int length, int size, int inner, unsigned char* __restrict__ out) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= size * inner) return;
    const int within = at % inner, place = at / inner, begin = first[place], count = min(taps, length - begin);
    weights += (long long)place * taps;
    for (int o = blockIdx.y; o < outer; o += gridDim.y) {
        const unsigned char* from = source + ((long long)o * length + begin) * inner + within;
        int sum = 1 << 21;
        for (int k = 0; k < count; k++) sum += from[(long long)k * inner] * weights[k];
        out[(long long)o * size * inner + at] = (unsigned char)min(max(sum >> 22, 0), 255);
    }
}

// ---- Normalize -----------------------------------------------------------------------------------

// (x / 255 - mean) / std for each channel; (pixels, 3) bytes to (3, pixels).
template <class Number>
__device__ __forceinline__ void
to_network(const unsigned char* rgb, long long pixels, const float* mean, const float* std, Number* out) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pixels) return;
#pragma unroll
    for (int c = 0; c < 3; c++) out[c * pixels + i] = (Number)((rgb[3 * i + c] / 255.0f - mean[c]) / std[c]);
}

extern "C" __global__ void __launch_bounds__(256, 4)
normalize_float(const unsigned char* __restrict__ rgb, long long pixels, float mean_r, float mean_g, float mean_b,
                float std_r, float std_g, float std_b, float* __restrict__ out) {
    const float mean[3] = {mean_r, mean_g, mean_b}, std[3] = {std_r, std_g, std_b};
    to_network(rgb, pixels, mean, std, out);
}

#include <cuda_fp16.h>

extern "C" __global__ void __launch_bounds__(256, 4)
normalize_half(const unsigned char* __restrict__ rgb, long long pixels, float mean_r, float mean_g, float mean_b,
               float std_r, float std_g, float std_b, __half* __restrict__ out) {
    const float mean[3] = {mean_r, mean_g, mean_b}, std[3] = {std_r, std_g, std_b};
    to_network(rgb, pixels, mean, std, out);
}

// ---- Bilinear ------------------------------------------------------------------------------------

#include "fixed_point.cuh"

// Enlarges values (h, w) to out (height, width). Output row i lies between input rows low and low + 1, at the fraction
// `down[i]`; columns likewise. blockIdx.z is the map, of several of a size.
extern "C" __global__ void __launch_bounds__(256, 4)
bilinear(const float* __restrict__ values, int h, int w, const int* __restrict__ top,
                                   const float* __restrict__ down, const int* __restrict__ left,
                                   const float* __restrict__ across, int height, int width, float* __restrict__ out) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= height * width) return;
    values += (long long)blockIdx.z * h * w;
    out += (long long)blockIdx.z * height * width;
    int row = at / width, column = at % width;
    const float* upper = values + (long long)top[row] * w;
    const float* lower = values + (long long)min(top[row] + 1, h - 1) * w;
    int l = left[column], r = min(l + 1, w - 1);
    out[at] = between(between(upper[l], lower[l], down[row]), between(upper[r], lower[r], down[row]), across[column]);
}

extern "C" __global__ void __launch_bounds__(256, 4)
to_fixed_point(const float* __restrict__ values, long long count, unsigned short* __restrict__ out) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = sixteen_bits(values[i]);
}

// ---- The solver's grid ---------------------------------------------------------------------------

__device__ __forceinline__ int color_bin(const unsigned char* rgb, float red, float green, float blue) {
    return (int)rintf(__fadd_rn(__fadd_rn(__fmul_rn(rgb[0], red), __fmul_rn(rgb[1], green)), __fmul_rn(rgb[2], blue)));
}

// Packs the number of the photograph and the bins of row, column, luma, blue and red difference into one number in mixed
// radix, and the index of the pixel into the lowest `shift` bits.
// Positions are relative to the image center. `weights` (3, 3) are color weights divided by the sides of the bins;
// `lowest` and `extents` are the same for all images of this size. `rgb` are `pixels` pixels of photographs of this size.
extern "C" __global__ void __launch_bounds__(256, 4)
color_keys(const unsigned char* __restrict__ rgb, int pixels, int height, int width, double sigma,
           const float* __restrict__ weights, const long long* __restrict__ lowest,
           const long long* __restrict__ extents, int shift, long long* __restrict__ keys) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pixels) return;
    const unsigned char* pixel = rgb + 3LL * i;
    const int at = i % (height * width);
    long long key = i / (height * width);
    key = key * extents[0] + (long long)rint((at / width - 0.5 * (height - 1)) / sigma) - lowest[0];
    key = key * extents[1] + (long long)rint((at % width - 0.5 * (width - 1)) / sigma) - lowest[1];
#pragma unroll
    for (int c = 0; c < 3; c++)
        key = key * extents[2 + c] + color_bin(pixel, weights[3 * c], weights[3 * c + 1], weights[3 * c + 2]) -
              lowest[2 + c];
    keys[i] = key << shift | i;
}

// ---- Components ----------------------------------------------------------------------------------
//
// Union-find over pixels whose score exceeds 1/2 (Playne and Hawick 2018): a pixel points to another pixel of its
// component with a lower index, or to itself. Two trees are joined by pointing the higher root to the lower one with
// atomicMin, and continuing with the pixel that it replaced. In the end each component points to its first pixel,
// independent of the order of threads. Background is -1. blockIdx.z is the map, of several of a size.

extern "C" __global__ void __launch_bounds__(256, 4)
start_labels(const float* __restrict__ score, int pixels, int* __restrict__ label, int* __restrict__ size) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pixels) return;
    score += (long long)blockIdx.z * pixels;
    label += (long long)blockIdx.z * pixels;
    size += (long long)blockIdx.z * pixels;
    label[i] = score[i] > 0.5f ? i : -1;
    size[i] = 0;
}

// Other threads may write a label at any time, so reading one is atomic too.
__device__ __forceinline__ int root(int* label, int i) {
    for (int next; (next = atomicAdd(&label[i], 0)) != i;) i = next;
    return i;
}

__device__ __forceinline__ void join(int* label, int a, int b) {
    while (true) {
        a = root(label, a);
        b = root(label, b);
        if (a == b) return;
        int high = max(a, b), low = min(a, b), old = atomicMin(&label[high], low);
        if (old == high) return;
        a = old;  // another thread has joined the higher root already: its new parent belongs to this component too
        b = low;
    }
}

extern "C" __global__ void __launch_bounds__(256, 4)
join_labels(const float* __restrict__ score, int height, int width, int* __restrict__ label) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    score += (long long)blockIdx.z * height * width;
    label += (long long)blockIdx.z * height * width;
    if (i >= height * width || !(score[i] > 0.5f)) return;
    int row = i / width, column = i % width;
    if (column > 0 && score[i - 1] > 0.5f) join(label, i, i - 1);
    if (row == 0) return;
#pragma unroll
    for (int step = -1; step <= 1; step++)
        if (column + step >= 0 && column + step < width && score[i - width + step] > 0.5f)
            join(label, i, i - width + step);
}

// Replaces the label of each pixel by the first pixel of its component, and counts the component's pixels there.
extern "C" __global__ void __launch_bounds__(256, 4)
measure_labels(int pixels, int* __restrict__ label, int* __restrict__ size) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    label += (long long)blockIdx.z * pixels;
    size += (long long)blockIdx.z * pixels;
    if (i >= pixels || atomicAdd(&label[i], 0) < 0) return;
    int first = root(label, i);
    atomicMin(&label[i], first);
    atomicAdd(&size[first], 1);
}

// Computes the number of components and the size of the largest; summary (maps, 2) is filled with zeros before.
extern "C" __global__ void __launch_bounds__(256, 4)
summarize_labels(const int* __restrict__ size, int pixels, int* __restrict__ summary) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    size += (long long)blockIdx.z * pixels;
    summary += 2 * blockIdx.z;
    if (i >= pixels || size[i] == 0) return;
    atomicAdd(&summary[0], 1);
    atomicMax(&summary[1], size[i]);
}

// Limits the score of pixels in components smaller than both shares to `cap`, unless there is only one component.
extern "C" __global__ void __launch_bounds__(256, 4)
cap_small(const float* __restrict__ score, int pixels, const int* __restrict__ label, const int* __restrict__ size,
          const int* __restrict__ summary, double relative, double absolute, float cap, float* __restrict__ out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pixels) return;
    const long long map = (long long)blockIdx.z * pixels;
    score += map;
    label += map;
    size += map;
    out += map;
    summary += 2 * blockIdx.z;
    bool small = summary[0] > 1 && label[i] >= 0 && size[label[i]] < fmax(relative * summary[1], absolute * pixels);
    out[i] = small ? fminf(score[i], cap) : score[i];
}
