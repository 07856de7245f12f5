// XXH3, the checksum of a store's records.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dali {

// XXH3's 64 bits, of more than 240 bytes on a little-endian machine.
uint64_t xxh3(const uint8_t* data, size_t bytes);

}  // namespace dali
