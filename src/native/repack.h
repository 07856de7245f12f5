// GGUF's blocks of 32 columns into packed tiles: their words and scales move, their values stay.
#pragma once

#include <cstddef>
#include <cstdint>

#include "format.h"

namespace dali {

// raw [rows][row_bytes] of blocks that are a scale, then quants, in the order of the packed format: Q8_0 for w8, Q4_0 for w4,
// MXFP4 for mxfp4. `packed` [matrix.bytes()].
// Returns false for a scale that is infinite or NaN.
bool repack(const Matrix& matrix, const uint8_t* raw, size_t row_bytes, uint8_t* packed);

}  // namespace dali
