// Scratch memory of the calling thread, 64-byte aligned.
#pragma once

#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

#include "layout/format.h"

namespace dali {

// What a Workspace gives out holds no values yet and is good for as long as that Workspace lives. Workspaces of a thread end in the
// opposite order of their beginnings, as local variables do; the memory stays with the thread, for the next one.
class Workspace {
  public:
    Workspace() : memory_(mine()), block_(memory_.block), used_(memory_.used) { memory_.open++; }
    ~Workspace() {
        memory_.block = block_;
        memory_.used = used_;
        if (--memory_.open == 0) memory_.join();
    }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    // Room for `count` values. std::bad_alloc where there is none.
    template <class T>
    T* take(size_t count) {
        return static_cast<T*>(memory_.take(count * sizeof(T)));
    }

  private:
    struct Block {
        char* at;
        size_t bytes;
    };

    // Blocks never move while somebody uses them: where the last is full, another follows, and all become one when all are free.
    struct Memory {
        std::vector<Block> blocks;
        size_t block = 0, used = 0;  // what is in use: the blocks before `block`, and of that one so many bytes
        size_t least = 1 << 16;      // bytes of a new block
        int open = 0;                // Workspaces

        ~Memory() { release(); }

        void* take(size_t bytes) {
            bytes = round_up(bytes, LINE);
            for (; block < blocks.size() && used + bytes > blocks[block].bytes; block++) used = 0;
            if (block == blocks.size()) {
                used = 0;
                const size_t size = round_up(std::max(least, bytes + bytes / 4), 4096);
                blocks.reserve(blocks.size() + 1);
                blocks.push_back({static_cast<char*>(::operator new(size, std::align_val_t(LINE))), size});
            }
            char* at = blocks[block].at + used;
            used += bytes;
            return at;
        }

        void join() {
            if (blocks.size() < 2) return;
            least = 0;
            for (const Block& one : blocks) least += one.bytes;
            release();
        }

        void release() {
            for (const Block& one : blocks) ::operator delete(one.at, std::align_val_t(LINE));
            blocks.clear();
        }
    };

    static Memory& mine() {
        static thread_local Memory memory;
        return memory;
    }

    Memory& memory_;
    const size_t block_, used_;
};

}  // namespace dali
