// GGUF's blocks into packed tiles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "layout/format.h"

namespace dali {

// raw [rows][row_bytes] of blocks of `type`; `packed` [matrix.bytes()].
// Words and scales of Q8_0 (w8), Q4_0 (w4), MXFP4 (mxfp4) and Q4_K (q4k) move and their values stay. Q4_1, Q5_0, Q5_1, Q5_K and
// Q6_K become w8 through floats, with the bytes of kernels/packing.py.
// Returns false for values or scales that are NaN, infinite or too large. std::invalid_argument for another type.
bool repack(const Matrix& matrix, const std::string& type, const uint8_t* raw, size_t row_bytes, uint8_t* packed);

// The values of `count` blocks of Q4_0, Q8_0, Q4_1, Q5_0, Q5_1, Q5_K or Q6_K. std::invalid_argument for another type.
void dequantize_blocks(const std::string& type, const uint8_t* raw, size_t count, float* out);

}  // namespace dali
