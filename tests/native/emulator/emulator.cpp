#include "emulator.h"

#include <algorithm>
#include <deque>
#include <numeric>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "shared_memory.h"

uint3 threadIdx, blockIdx;
dim3 gridDim;

namespace emulator {

bool refuses_cooperation = false;
int resident_blocks = 3;

namespace {

constexpr unsigned kWarp = 32;

enum class State { kReady, kInBarrier, kInGridBarrier, kInShuffle, kDone };

void run_kernel();

struct Thread {
  Fiber fiber{run_kernel};
  State state = State::kReady;
  // What it gives in a shuffle; two places in turn, since one lane may be a shuffle ahead of another.
  unsigned char given[2][16];
  unsigned shuffles = 0;
};

std::deque<Thread> threads;  // of the resident blocks, one block after the other
unsigned resident, block_size, current, launches;
const std::function<void()>* running;
const char* failure;
std::mt19937 schedule;
int skipped_line;
unsigned skipping_threads;

void wait(State state) {
  Thread& self = threads[current];
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

// Lets those of `total` threads go on for whom nobody is missing any more.
void release(unsigned total) {
  const auto release_from = [&](State state, unsigned size) {
    for (unsigned first = 0; first < total; first += size)
      if (all_in(state, first, size))
        std::for_each_n(threads.begin() + first, size, [](Thread& thread) { thread.state = State::kReady; });
  };
  release_from(State::kInGridBarrier, total);
  release_from(State::kInBarrier, block_size);
  release_from(State::kInShuffle, kWarp);
}

std::vector<unsigned> count_to(unsigned end) {
  std::vector<unsigned> numbers(end);
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

// While some warps and blocks stand still, the others run as far as they can without them; every fourth time all
// warps run, and every 16th all blocks.
void run_together(const unsigned* blocks, unsigned count) {
  const unsigned total = count * block_size;
  std::vector<unsigned> order = count_to(block_size), turns = count_to(count);
  std::optional<SharedMemory> memory;
  if (count > 1) memory.emplace();
  std::vector<std::vector<char>> images(count, count > 1 ? memory->image() : std::vector<char>());
  std::for_each_n(threads.begin(), total, [](Thread& thread) { thread.state = State::kReady; });
  for (unsigned phase = 0; !all_in(State::kDone, 0, total); ++phase) {
    const uint32_t still = phase % 4 == 3 ? 0 : schedule();
    const uint32_t still_blocks = count == 1 || phase % 16 == 15 ? 0 : schedule();
    bool moved = false;
    for (bool moving = true; moving; moved |= moving) {
      moving = false;
      std::shuffle(turns.begin(), turns.end(), schedule);
      for (const unsigned block : turns) {
        if ((still_blocks >> (block % 32) & 1) != 0) continue;
        if (memory) memory->load(images[block]);
        blockIdx.x = blocks[block];
        std::shuffle(order.begin(), order.end(), schedule);
        for (const unsigned t : order) {
          current = block * block_size + t;
          if (threads[current].state != State::kReady || (still >> (current / kWarp % 32) & 1) != 0) continue;
          moving = true;
          threadIdx.x = t;
          threads[current].fiber.resume();
          if (failure != nullptr) return;
        }
        if (memory) memory->save(images[block]);
      }
      release(total);
    }
    if (moved || still != 0 || still_blocks != 0) continue;
    failure = "a barrier or shuffle that some threads never reach";
    return;
  }
}

}  // namespace

void sync_block(int line) {
  if (line != skipped_line || threadIdx.x >= skipping_threads) wait(State::kInBarrier);
}

void sync_grid(int line) {
  check(gridDim.x == resident, "a barrier of a grid whose blocks are not all resident");
  if (line != skipped_line || current >= skipping_threads) wait(State::kInGridBarrier);
}

void check(bool condition, const char* message) {
  if (condition) return;
  failure = message;
  wait(State::kDone);
}

const void* exchange(const void* value, size_t size, unsigned lane_mask) {
  Thread& self = threads[current];
  const unsigned place = self.shuffles++ % 2;
  std::memcpy(self.given[place], value, size);
  wait(State::kInShuffle);
  return threads[current ^ lane_mask].given[place];
}

void launch(unsigned blocks, unsigned size, const std::function<void()>& kernel, unsigned at_a_time) {
  if (blocks == 0 || size == 0 || size > 1024 || size % kWarp != 0)
    throw std::runtime_error("launch of " + std::to_string(blocks) + " blocks of " + std::to_string(size));
  while (threads.size() < at_a_time * size) threads.emplace_back();
  ++launches;
  running = &kernel;
  gridDim = dim3(blocks);
  block_size = size;
  std::vector<unsigned> order = count_to(blocks);
  std::shuffle(order.begin(), order.end(), schedule);
  for (unsigned first = 0; first < blocks; first += at_a_time) {
    resident = std::min(at_a_time, blocks - first);
    run_together(order.data() + first, resident);
    if (failure == nullptr) continue;
    threads.clear();  // they stand in the midst of the kernel
    throw std::runtime_error(std::exchange(failure, nullptr));
  }
}

}  // namespace emulator

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void emulator_seed(unsigned seed) { emulator::schedule.seed(seed); }

// From now on the first `size` threads of a block, or of the grid where it is the grid's barrier, pass the barriers
// in this line of any file.
EXPORT void emulator_skip_barrier(int line, unsigned size) {
  emulator::skipped_line = line;
  emulator::skipping_threads = size;
}

EXPORT unsigned emulator_launches() { return emulator::launches; }

EXPORT void emulator_resident_blocks(int blocks) { emulator::resident_blocks = blocks; }

EXPORT void emulator_refuse_cooperation(bool refuse) { emulator::refuses_cooperation = refuse; }
