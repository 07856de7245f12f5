// A model's table of embeddings: a token's row is looked up where the table lies, or decoded from its tile.
#pragma once

#include <cstdint>
#include <vector>

#include "layout/activations.h"
#include "layout/format.h"

namespace dali {

struct Embeddings {
    const void* table;        // [vocabulary, hidden] of the model's type; null for a packed one
    const uint8_t* packed;    // `matrix`; null for the other
    Matrix matrix;
    int64_t vocabulary;
    float scale;              // of all of them
};

// x [ids, hidden] = the rows of `ids`. std::out_of_range for an id beyond the vocabulary.
void look_up(const Embeddings& embeddings, const std::vector<int64_t>& ids, int hidden, Dtype dtype, void* x);

}  // namespace dali
