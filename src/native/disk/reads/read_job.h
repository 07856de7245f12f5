// A record to be read.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dali {

struct ReadJob {
    int record;  // its number, by which it is asked for
    int64_t offset;
    size_t bytes;
    uint8_t* into;
    uint64_t checksum;
    bool direct;  // past the page cache
};

}  // namespace dali
