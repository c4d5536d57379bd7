// The shared memory of a block, kept while other blocks run.
#pragma once

#include <link.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace emulator {

// All __shared__ variables are thread_local, because those stand side by side: in the segment of this library that
// the thread has a copy of.
class SharedMemory {
 public:
  SharedMemory() {
    static thread_local char one;
    ours_ = &one;
    dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* self) {
          static_cast<SharedMemory*>(self)->find(*info);
          return 0;
        },
        this);
    if (begin_ == nullptr) throw std::runtime_error("no thread_local segment is found");
  }

  // What the last block left.
  std::vector<char> image() const { return {begin_, begin_ + size_}; }
  void load(const std::vector<char>& image) const { std::memcpy(begin_, image.data(), size_); }
  void save(std::vector<char>& image) const { std::memcpy(image.data(), begin_, size_); }

 private:
  void find(const dl_phdr_info& info) {
    char* const begin = static_cast<char*>(info.dlpi_tls_data);
    for (int i = 0; begin != nullptr && i < info.dlpi_phnum; ++i) {
      const auto& segment = info.dlpi_phdr[i];
      if (segment.p_type != PT_TLS || ours_ < begin || ours_ >= begin + segment.p_memsz) continue;
      begin_ = begin;
      size_ = segment.p_memsz;
    }
  }

  const char* ours_;
  char* begin_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace emulator
