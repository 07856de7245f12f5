// Packed matrices times a step's tokens.
#pragma once

#include <vector>

#include "layout/activations.h"
#include "layout/format.h"

namespace dali {

// out [tokens, rows] = x times the matrix's transpose, plus `bias` [rows] unless null.
struct Product {
    Matrix matrix;
    const uint8_t* packed;
    const float* bias;
    void* out;
};

// Several products of the same x [tokens, columns] in one go; `columns`: unpadded.
void linear(const std::vector<Product>& products, int columns, const void* x, Dtype dtype, int tokens);

}  // namespace dali
