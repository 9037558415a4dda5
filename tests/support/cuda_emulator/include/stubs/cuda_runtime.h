// Empty: cuda_emulator.h has brought what a kernel needs of it.
