// Launches whose blocks wait for one another, so that all of them must be resident.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <utility>

#include "elements.cuh"

namespace modgrad {

// Elements of gradients for which one launch is worth it: 64 MiB of float32, about what an L2 holds of them; and
// 8 KiB of partial sums, which every block reads.
constexpr int64_t kMostAtOnce = int64_t{1} << 24;

// Whether an op takes one launch with a barrier where it could. MODGRAD_COOPERATIVE: 1 wherever it can, 0 nowhere.
inline bool takes_one_launch(bool is_worth_it) {
  const char* choice = std::getenv("MODGRAD_COOPERATIVE");
  if (choice == nullptr || (*choice != '0' && *choice != '1')) return is_worth_it;
  return *choice == '1';
}

// Blocks of the kernel that are resident together, 0 where the device has no barrier for them.
inline int resident_blocks(const void* kernel, int32_t device) {
  thread_local std::map<std::pair<const void*, int32_t>, int> known;
  const auto [found, is_new] = known.try_emplace({kernel, device}, 0);
  if (!is_new) return found->second;
  int cooperates = 0, processors = 0, blocks = 0;
  if (cudaDeviceGetAttribute(&cooperates, cudaDevAttrCooperativeLaunch, device) == cudaSuccess && cooperates != 0 &&
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0) == cudaSuccess)
    found->second = blocks * processors;
  else
    cudaGetLastError();  // the parts are launched without a barrier, and without this error
  return found->second;
}

// Up to `most` blocks. cudaErrorCooperativeLaunchTooLarge: not here, or not while others hold a part of the
// device; the error is cleared, and the op goes on in several launches.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_together(void (*kernel)(Parameters...), int64_t most, int32_t device, cudaStream_t stream,
                            const Arguments&... arguments) {
  const int resident = resident_blocks(reinterpret_cast<const void*>(kernel), device);
  if (resident == 0) return cudaErrorCooperativeLaunchTooLarge;
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim.x = static_cast<unsigned>(std::clamp<int64_t>(most, 1, resident));
  config.blockDim.x = kThreads;
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) cudaGetLastError();  // it is returned: the next launch must not report it again
  return error;
}

}  // namespace modgrad
