// A byte of each of a tile's 16 rows.
#pragma once

#include <cstdint>
#include <cstring>

namespace dali {

typedef uint8_t Bytes16 __attribute__((vector_size(16)));

// For what a loop must not call: its tables and constants then stay in registers.
#define DALI_INLINE inline __attribute__((always_inline))

DALI_INLINE Bytes16 bytes_at(const uint8_t* from) {
    Bytes16 bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return bytes;
}

}  // namespace dali
