#include "emulator.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

uint3 threadIdx, blockIdx;
dim3 gridDim;

namespace emulator {

bool refuses_cooperation = false;

namespace {

constexpr unsigned kWarp = 32;

enum class State { kReady, kInBarrier, kInShuffle, kDone };

void run_kernel();

struct Thread {
  Fiber fiber{run_kernel};
  State state = State::kReady;
  // What it gives in a shuffle; two places in turn, since one lane may be a shuffle ahead of another.
  unsigned char given[2][16];
  unsigned shuffles = 0;
};

std::vector<Thread> threads;
const std::function<void()>* running;
const char* failure;
std::mt19937 schedule;
int skipped_line;
unsigned skipping_threads;

void wait(State state) {
  Thread& self = threads[threadIdx.x];
  self.state = state;
  self.fiber.yield();
}

void run_kernel() {
  for (;;) {
    (*running)();
    wait(State::kDone);
  }
}

bool all_in(State state, unsigned first, unsigned size) {
  return std::all_of(threads.begin() + first, threads.begin() + first + size,
                     [&](const Thread& thread) { return thread.state == state; });
}

// Lets those go on for whom nobody is missing any more.
void release() {
  const auto go = [](Thread& thread) { thread.state = State::kReady; };
  const unsigned size = threads.size();
  if (all_in(State::kInBarrier, 0, size)) std::for_each(threads.begin(), threads.end(), go);
  for (unsigned first = 0; first < size; first += kWarp)
    if (all_in(State::kInShuffle, first, kWarp)) std::for_each_n(threads.begin() + first, kWarp, go);
}

// While some warps stand still, the others run as far as they can without them; every fourth time all run.
void run_block() {
  std::vector<unsigned> order(threads.size());
  std::iota(order.begin(), order.end(), 0);
  for (Thread& thread : threads) thread.state = State::kReady;
  for (unsigned phase = 0; !all_in(State::kDone, 0, threads.size()); ++phase) {
    const uint32_t still = phase % 4 == 3 ? 0 : schedule();
    bool moved = false;
    for (bool moving = true; moving; moved |= moving) {
      moving = false;
      std::shuffle(order.begin(), order.end(), schedule);
      for (const unsigned t : order) {
        if (threads[t].state != State::kReady || (still >> (t / kWarp) & 1) != 0) continue;
        moving = true;
        threadIdx.x = t;
        threads[t].fiber.resume();
        if (failure != nullptr) return;
      }
      release();
    }
    if (moved || still != 0) continue;
    failure = "a barrier or shuffle that some threads never reach";
    return;
  }
}

}  // namespace

void sync_block(int line) {
  if (line != skipped_line || threadIdx.x >= skipping_threads) wait(State::kInBarrier);
}

void check(bool condition, const char* message) {
  if (condition) return;
  failure = message;
  wait(State::kDone);
}

const void* exchange(const void* value, size_t size, unsigned lane_mask) {
  Thread& self = threads[threadIdx.x];
  const unsigned place = self.shuffles++ % 2;
  std::memcpy(self.given[place], value, size);
  wait(State::kInShuffle);
  return threads[threadIdx.x ^ lane_mask].given[place];
}

void launch(unsigned blocks, unsigned size, const std::function<void()>& kernel) {
  if (blocks == 0 || size == 0 || size > 1024 || size % kWarp != 0)
    throw std::runtime_error("launch of " + std::to_string(blocks) + " blocks of " + std::to_string(size));
  if (threads.size() != size) threads = std::vector<Thread>(size);
  running = &kernel;
  gridDim = dim3(blocks);
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), schedule);
  for (const unsigned block : order) {
    blockIdx.x = block;
    run_block();
    if (failure == nullptr) continue;
    threads.clear();  // they stand in the midst of the kernel
    throw std::runtime_error(std::exchange(failure, nullptr));
  }
}

}  // namespace emulator

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void emulator_seed(unsigned seed) { emulator::schedule.seed(seed); }

// From now on the first `size` threads of a block pass the barriers in this line of any file.
EXPORT void emulator_skip_barrier(int line, unsigned size) {
  emulator::skipped_line = line;
  emulator::skipping_threads = size;
}

EXPORT void emulator_refuse_cooperation(bool refuse) { emulator::refuses_cooperation = refuse; }
