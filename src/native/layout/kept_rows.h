// How a head's key or value is kept: as it is, or in 8 bits, as GGUF's Q8_0 has them: all quants, then the scale of each 32 of them, a
// half (src/dali/kernels/kept_rows.py).
#pragma once

#include <cstdint>

#include "layout/activations.h"
#include "layout/format.h"

namespace dali {

// Bytes of a row of `width` values in 8 bits.
constexpr int64_t q8_bytes(int width) { return width + 2 * ((width + GROUP - 1) / GROUP); }

// From one row to the next.
constexpr int64_t kept_bytes(int width, Dtype dtype, bool in_q8) { return in_q8 ? q8_bytes(width) : width * int64_t(item_bytes(dtype)); }

}  // namespace dali
