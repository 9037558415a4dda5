// The color guided filter (He, Sun and Tang 2013):
//
//   moments_across, fit, average_across, average_down   its coefficients
//   apply_map, apply_enlarged                           the filter itself, and its use to enlarge
//
// Windows are clipped to the image. Sums are computed along rows, then along columns, by plain addition: a radius is a
// few pixels, and there is no running sum that would accumulate rounding errors. Sums of colors and of their products
// are sums of integers, and exact in float64.
//
// Layout: one thread per output, consecutive threads on consecutive memory; blockIdx.z is the photograph, of several of
// a size. The arithmetic agrees with the CPU's up to rounding.
//
// Version history: there is one version, not timed on a GPU yet.

#include "fixed_point.cuh"

#define MOMENTS 13  // r g b, rr gr gg br bg bb, t, r t, g t, b t
#define PLANES 4    // a for red, green and blue, then b

extern "C" __global__ void __launch_bounds__(256, 2)
moments_across(const unsigned char* __restrict__ rgb, const float* __restrict__ target,
                                         int height, int width, int radius, double* __restrict__ out) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    const long long pixels = (long long)height * width;
    if (at >= pixels) return;
    rgb += 3 * blockIdx.z * pixels;
    target += blockIdx.z * pixels;
    out += MOMENTS * blockIdx.z * pixels;
    int column = at % width, from = max(column - radius, 0), to = min(column + radius + 1, width);
    double sum[MOMENTS] = {};
    for (long long i = at - column + from; i < at - column + to; i++) {
        double r = rgb[3 * i], g = rgb[3 * i + 1], b = rgb[3 * i + 2], t = target[i];
        sum[0] += r;
        sum[1] += g;
        sum[2] += b;
        sum[3] += r * r;
        sum[4] += g * r;
        sum[5] += g * g;
        sum[6] += b * r;
        sum[7] += b * g;
        sum[8] += b * b;
        sum[9] += t;
        sum[10] += r * t;
        sum[11] += g * t;
        sum[12] += b * t;
    }
#pragma unroll
    for (int k = 0; k < MOMENTS; k++) out[k * pixels + at] = sum[k];
}

// The sum along the column of a window of `values` at pixel `at`.
__device__ __forceinline__ double sum_down(const double* values, int at, int width, int row, int from, int to) {
    double total = 0.0;
    for (int i = from; i < to; i++) total += values[at + (long long)(i - row) * width];
    return total;
}

__device__ __forceinline__ int side(int center, int radius, int length) {
    return min(center + radius + 1, length) - max(center - radius, 0);
}

// Fits the target within each window by a linear function of color on the scale 0..1: out (4, pixels), a for red, green
// and blue, then b. (Sigma + eps U) a = covariance is solved as L D L^T, which stays accurate for a window with a
// single hue.
extern "C" __global__ void __launch_bounds__(256, 2)
fit(const double* __restrict__ moments, int height, int width, int radius, double eps, double* __restrict__ out) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    const long long pixels = (long long)height * width;
    if (at >= pixels) return;
    moments += MOMENTS * blockIdx.z * pixels;
    out += PLANES * blockIdx.z * pixels;
    int row = at / width, from = max(row - radius, 0), to = min(row + radius + 1, height);
    const double area = (double)(to - from) * side(at % width, radius, width);
    double mean[MOMENTS];
#pragma unroll
    for (int k = 0; k < MOMENTS; k++) mean[k] = sum_down(moments + k * pixels, at, width, row, from, to) / area;
    const double r = mean[0] / 255, g = mean[1] / 255, b = mean[2] / 255, t = mean[9], square = 255.0 * 255.0;
    const double s00 = mean[3] / square - r * r + eps, s10 = mean[4] / square - g * r,
                 s11 = mean[5] / square - g * g + eps;
    const double s20 = mean[6] / square - b * r, s21 = mean[7] / square - b * g, s22 = mean[8] / square - b * b + eps;
    const double c0 = mean[10] / 255 - t * r, c1 = mean[11] / 255 - t * g, c2 = mean[12] / 255 - t * b;
    const double l10 = s10 / s00, l20 = s20 / s00, d1 = s11 - l10 * s10, d1_l21 = s21 - l20 * s10, l21 = d1_l21 / d1;
    const double y1 = c1 - l10 * c0, y2 = c2 - l20 * c0 - l21 * y1;
    const double a2 = y2 / (s22 - l20 * s20 - l21 * d1_l21), a1 = y1 / d1 - l21 * a2,
                 a0 = c0 / s00 - l10 * a1 - l20 * a2;
    out[at] = a0;
    out[pixels + at] = a1;
    out[2 * pixels + at] = a2;
    out[3 * pixels + at] = t - (a0 * r + a1 * g + a2 * b);
}

// Sums of plane blockIdx.y of PLANES along the rows of windows.
extern "C" __global__ void __launch_bounds__(256, 2)
average_across(const double* __restrict__ planes, int height, int width, int radius, double* __restrict__ out) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    const long long pixels = (long long)height * width, base = (PLANES * blockIdx.z + blockIdx.y) * pixels;
    if (at >= pixels) return;
    int column = at % width, to = min(column + radius, width - 1);
    double total = 0.0;
    for (int i = max(column - radius, 0); i <= to; i++) total += planes[base + at - column + i];
    out[base + at] = total;
}

// Then along columns, divided by the area: the mean. The three planes of a are scaled for 8-bit color.
extern "C" __global__ void __launch_bounds__(256, 2)
average_down(const double* __restrict__ planes, int height, int width, int radius, double* __restrict__ out) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    const long long pixels = (long long)height * width, base = (PLANES * blockIdx.z + blockIdx.y) * pixels;
    if (at >= pixels) return;
    int row = at / width, from = max(row - radius, 0), to = min(row + radius + 1, height);
    double area = (double)(to - from) * side(at % width, radius, width);
    out[base + at] = sum_down(planes + base, at, width, row, from, to) / area / (blockIdx.y < 3 ? 255.0 : 1.0);
}

// Computes a . rgb + b at the size at which the coefficients were fitted.
extern "C" __global__ void __launch_bounds__(256, 4)
apply_map(const double* __restrict__ planes, const unsigned char* __restrict__ rgb,
                                    long long pixels, float* __restrict__ out) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pixels) return;
    planes += PLANES * blockIdx.z * pixels;
    rgb += 3 * blockIdx.z * pixels;
    out += blockIdx.z * pixels;
    double value = planes[3 * pixels + i];
#pragma unroll
    for (int c = 0; c < 3; c++) value += planes[c * pixels + i] * rgb[3 * i + c];
    out[i] = (float)value;
}

// Enlarges the coefficients (4, h, w) bilinearly, and applies them to the colors of the full photograph; the result is
// in 16-bit fixed point.
extern "C" __global__ void __launch_bounds__(256, 4)
apply_enlarged(const double* __restrict__ planes, int h, int w, const int* __restrict__ top,
               const float* __restrict__ down, const int* __restrict__ left, const float* __restrict__ across,
               const unsigned char* __restrict__ rgb, int height, int width, unsigned short* __restrict__ out) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= height * width) return;
    planes += (long long)PLANES * blockIdx.z * h * w;
    rgb += 3LL * blockIdx.z * height * width;
    out += (long long)blockIdx.z * height * width;
    int row = at / width, column = at % width, l = left[column], r = min(l + 1, w - 1);
    long long upper = (long long)top[row] * w, lower = (long long)min(top[row] + 1, h - 1) * w;
    float enlarged[4];
#pragma unroll
    for (int c = 0; c < 4; c++) {
        const double* plane = planes + (long long)c * h * w;
        float before = between((float)plane[upper + l], (float)plane[lower + l], down[row]);
        float after = between((float)plane[upper + r], (float)plane[lower + r], down[row]);
        enlarged[c] = between(before, after, across[column]);
    }
    float value = enlarged[3];
#pragma unroll
    for (int c = 0; c < 3; c++) value = __fadd_rn(value, __fmul_rn(enlarged[c], rgb[3LL * at + c]));
    out[at] = sixteen_bits(value);
}
