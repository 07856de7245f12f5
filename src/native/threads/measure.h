// What the machine can do, measured.
#pragma once

#include <cstddef>

namespace dali {

// Seconds in which the pool's threads read `bytes` at `from`, each byte once.
double read_seconds(const void* from, size_t bytes);

}  // namespace dali
