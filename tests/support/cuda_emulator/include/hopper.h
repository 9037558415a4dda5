// Instructions of compute capability 9.0, with the operands of the PTX: 32-bit addresses in shared memory, 64-bit
// matrix descriptors, a tensor map as tensor_map.py writes it. The runtime carries them out as late as a GPU may.
#pragma once
#include "fibre.h"

extern "C" {
unsigned emu_shared_address(const void* place);
// mbarrier.init, .arrive.expect_tx, .arrive, and .try_wait.parity until it holds
void emu_mbarrier_init(unsigned barrier, unsigned count);
void emu_mbarrier_expect(unsigned barrier, unsigned bytes);
void emu_mbarrier_arrive(unsigned barrier);
void emu_mbarrier_wait(unsigned barrier, unsigned parity);
void emu_fence_async();  // fence.proxy.async
// cp.async.bulk.tensor.3d
void emu_copy_box(unsigned target, const void* map, int x, int y, int z, unsigned barrier);
// bar.sync, and bar.arrive, which does not wait
void emu_named_barrier(int line, int number, int threads);
void emu_named_arrive(int line, int number, int threads);
// wgmma.fence, .commit_group, .wait_group, and .mma_async m64 n k16 of 16-bit numbers with sums in float32: the left
// operand comes from `registers`, or if these are null from `left`.
void emu_wgmma_fence();
void emu_wgmma_commit();
void emu_wgmma_wait(int pending);
void emu_wgmma(int line, int bfloat16, int n, float* sums, const unsigned* registers, unsigned long long left,
               unsigned long long right, int scale_d, int transpose_left, int transpose_right);
}
