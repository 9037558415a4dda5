// Enough of CUDA C++ for g++ to compile a kernel. translate.py puts this in front of every .cu file.
#pragma once
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__
#define __align__(n) __attribute__((aligned(n)))
#define __constant__
#define __grid_constant__
#include "fibre.h"
#include "warp.h"
#include "atomics.h"
#include "vectors.h"
#include "intrinsics.h"
#include "half.h"
#include "hopper.h"
#include "entry.h"
