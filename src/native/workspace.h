// Scratch memory of the calling thread: grows, 64-byte aligned, kept for the next call.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

#include "format.h"

namespace dali {

class Workspace {
  public:
    ~Workspace() { std::free(memory_); }

    // Room for `bytes`; what an earlier call put there is gone.
    void reserve(size_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            size_ = 0;  // until there is room
            const size_t size = round_up(bytes + bytes / 4, 4096);
            memory_ = std::aligned_alloc(LINE, size);
            if (!memory_) throw std::bad_alloc();
            size_ = size;
        }
        used_ = 0;
    }
    void* take(size_t bytes) {
        void* at = static_cast<char*>(memory_) + used_;
        used_ += round_up(bytes, LINE);
        return at;
    }
    static Workspace& mine() {
        static thread_local Workspace workspace;
        return workspace;
    }

  private:
    void* memory_ = nullptr;
    size_t size_ = 0, used_ = 0;
};

}  // namespace dali
