// Instructions of compute capability 9.0 that C++ cannot express: barriers in shared memory that count bytes
// (mbarrier), copies of boxes of a tensor by the tensor memory accelerator (TMA), and matrix products of a warp group
// of 128 threads (wgmma). All of them take addresses in shared memory as 32-bit numbers. On a CPU each is a call of the
// emulator, which is given what the instruction is given.
//
// Order of memory: the accelerator and wgmma read and write shared memory through the "async proxy", ordinary loads and
// stores through the "generic proxy". A barrier that a copy completes makes its bytes visible to all who wait for it;
// ordinary stores need fence_async() before wgmma or a copy may see them. (PTX ISA 8.0 and later: "Async proxy",
// "mbarrier", "cp.async.bulk.tensor", "wgmma".)

#ifdef BFLOAT16
#define NUMBER "bf16"
#else
#define NUMBER "f16"
#endif

// A box of a tensor in global memory, as cuTensorMapEncodeTiled describes it.
struct __align__(64) TensorMap {
    unsigned long long opaque[16];
};

#ifdef __CUDACPU__
#ifdef BFLOAT16
#define EMU_BFLOAT16 1
#else
#define EMU_BFLOAT16 0
#endif
#define shared_address emu_shared_address
#define barrier_init emu_mbarrier_init
#define barrier_expect emu_mbarrier_expect
#define barrier_arrive emu_mbarrier_arrive
#define barrier_wait emu_mbarrier_wait
#define fence_async emu_fence_async
#define copy_box emu_copy_box
#define named_barrier(number, threads) emu_named_barrier(__LINE__, number, threads)
#define named_arrive(number, threads) emu_named_arrive(__LINE__, number, threads)
#define products_fence() emu_wgmma_fence()
#define products_commit() emu_wgmma_commit()
#define products_wait(pending) emu_wgmma_wait(pending)
#define settled(numbers)
#define multiply_shared(d, a, b, added) emu_wgmma(__LINE__, EMU_BFLOAT16, 128, d, nullptr, a, b, added, 0, 0)
#define multiply_registers(d, a, b, added) emu_wgmma(__LINE__, EMU_BFLOAT16, 64, d, a, 0, b, added, 0, 1)

#else

__device__ __forceinline__ unsigned shared_address(const void* place) {
    return (unsigned)__cvta_generic_to_shared(place);
}

// A phase of a barrier ends when it has had `count` arrivals and all bytes that were announced.
__device__ __forceinline__ void barrier_init(unsigned barrier, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_expect(unsigned barrier, unsigned bytes) {  // and arrive
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Waits for the end of the phase of this parity; phases count from 0, and one before the first counts as ended.
__device__ __forceinline__ void barrier_wait(unsigned barrier, unsigned parity) {
    asm volatile("{\n.reg .pred ended;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
                 "@!ended bra again;\n}" ::"r"(barrier), "r"(parity) : "memory");
}
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Starts to copy a box to shared memory; what lies outside of the tensor becomes zero.
__device__ __forceinline__ void
copy_box(unsigned target, const TensorMap* map, int column, int row, int image, unsigned barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %3, %4}], [%5];" ::"r"(target), "l"(map), "r"(column), "r"(row), "r"(image), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void named_barrier(int number, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int number, int threads) {  // without waiting
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Before the first product, and after other instructions have touched the registers of one.
__device__ __forceinline__ void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `pending` groups of products are under way.
#define products_wait(pending) asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory")
// Keeps the compiler from reading results, or reusing operands, before the wait that stands above.
template <int count> __device__ __forceinline__ void settled(float (&numbers)[count]) {
#pragma unroll
    for (int i = 0; i < count; i++) asm volatile("" : "+f"(numbers[i])::"memory");
}
template <int count> __device__ __forceinline__ void settled(unsigned (&words)[count]) {
#pragma unroll
    for (int i = 0; i < count; i++) asm volatile("" : "+r"(words[i])::"memory");
}

#define FOUR(kind, x, i) kind(x[i]), kind(x[i + 1]), kind(x[i + 2]), kind(x[i + 3])
#define SIXTEEN(kind, x, i) FOUR(kind, x, i), FOUR(kind, x, i + 4), FOUR(kind, x, i + 8), FOUR(kind, x, i + 12)

// d (64 x 128) = a (64 x 16) b (16 x 128), plus d if `added`; both from shared memory, with the 16 innermost.
__device__ __forceinline__ void
multiply_shared(float (&d)[64], unsigned long long a, unsigned long long b, int added) {
    asm volatile("{\n.reg .pred added;\nsetp.ne.b32 added, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." NUMBER "." NUMBER " "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "%64, %65, added, 1, 1, 0, 0;\n}"
                 : SIXTEEN("+f", d, 0), SIXTEEN("+f", d, 16), SIXTEEN("+f", d, 32), SIXTEEN("+f", d, 48)
                 : "l"(a), "l"(b), "r"(added)
                 : "memory");
}
// d (64 x 64) = a (64 x 16) b (16 x 64), plus d if `added`; a from registers, b from shared memory with the 64
// innermost.
__device__ __forceinline__ void
multiply_registers(float (&d)[32], const unsigned* a, unsigned long long b, int added) {
    asm volatile("{\n.reg .pred added;\nsetp.ne.b32 added, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." NUMBER "." NUMBER " "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "{%32, %33, %34, %35}, %36, added, 1, 1, 1;\n}"
                 : SIXTEEN("+f", d, 0), SIXTEEN("+f", d, 16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(added)
                 : "memory");
}
#endif
