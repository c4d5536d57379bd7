// What a .cu file needs to be compiled by a C++ compiler and run on the CPU, in a schedule of random order.
// Emulated: blocks, one at a time, and those of a cooperative launch in turn; their threads as fibers, which change
// places only in a barrier or a shuffle; shared memory, which keeps what the last block left in it; kernels of one
// dimension.
// Not emulated: PTX, the memory model, streams and asynchrony, fused multiply-add that the source does not ask
// for, CUDA's own exp, log, sin and cos (libm's are taken), timing.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local  // so that it is in one piece (shared_memory.h)
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __syncthreads() emulator::sync_block(__LINE__)

extern uint3 threadIdx, blockIdx;
extern dim3 gridDim;

namespace emulator {

// Whether a cooperative launch is refused, as where others hold a part of the device.
extern bool refuses_cooperation;
extern int resident_blocks;

// Runs a kernel to its end, `at_a_time` of its blocks together. Throws std::runtime_error where the GPU would hang
// or fault.
void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel, unsigned at_a_time = 1);

// Called by the threads of a kernel.
void sync_block(int line);
void sync_grid(int line);
void check(bool condition, const char* message);
const void* exchange(const void* value, size_t size, unsigned lane_mask);

template <int kBytes, typename T>
T* aligned_to(T* address) {
  check(reinterpret_cast<uintptr_t>(address) % kBytes == 0, "misaligned access of 8 or 16 bytes");
  return address;
}

}  // namespace emulator

template <typename Kernel, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, Kernel kernel, const Args&... args) {
  const unsigned blocks = config->gridDim.x;
  if (emulator::refuses_cooperation || blocks > static_cast<unsigned>(emulator::resident_blocks))
    return cudaErrorCooperativeLaunchTooLarge;
  emulator::launch(blocks, config->blockDim.x, [&] { kernel(args...); }, blocks);
  return cudaSuccess;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  emulator::check(mask == ~0u, "shuffle by a part of a warp");
  std::memcpy(&value, emulator::exchange(&value, sizeof(T), lane_mask), sizeof(T));
  return value;
}

// The compiler is told not to fuse (build.py).
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
