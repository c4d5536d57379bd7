// A function on a stack of its own, in turn with its caller.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <memory>

namespace emulator {

class Fiber {
 public:
  // `function` never returns.
  explicit Fiber(void (*function)()) : function_(function), stack_(new char[kStackSize]) {}

  // For the caller: runs the function from where it stands until it yields.
  void resume() {
    if (_setjmp(caller_) != 0) return;
    if (started_) _longjmp(function_place_, 1);
    started_ = true;
    // Only to begin: it costs a system call each time.
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack_.get();
    context.uc_stack.ss_size = kStackSize;
    makecontext(&context, function_, 0);
    setcontext(&context);
  }

  // For the function.
  void yield() {
    if (_setjmp(function_place_) == 0) _longjmp(caller_, 1);
  }

 private:
  static constexpr std::size_t kStackSize = 1 << 16;
  void (*function_)();
  std::unique_ptr<char[]> stack_;
  bool started_ = false;
  jmp_buf caller_, function_place_;
};

}  // namespace emulator
