// A whole model while decoding: embeddings, layers one after another, norm, head.
#pragma once

#include <cstdint>
#include <vector>

#include "model/decoder_layer.h"

namespace dali {

// A table of embeddings: a token's row is copied from where it lies, or decoded from its tile.
struct Embeddings {
    const void* table;      // [vocabulary, hidden] of the model's type; null for a packed one
    const uint8_t* packed;  // `matrix`; null for the other
    Matrix matrix;
    int64_t vocabulary;
    float scale;  // of all of them
};

// x [ids, hidden] = the rows of `ids`. std::out_of_range for an id beyond the vocabulary.
void look_up(const Embeddings& embeddings, const std::vector<int64_t>& ids, int hidden, Dtype dtype, void* x);

struct DecodingModel {
    Dtype dtype;  // of everything but the packed weights
    Embeddings embeddings;
    std::vector<const DecoderLayer*> layers;
    std::vector<int> rotations;  // of each layer: which of a call's it takes
    Norm before_head;
    PackedLinear head;
    float logits_divisor;
};

// Where one token's rotation lies, as many values each as the layers that take it want.
struct Rotation {
    const void *cos, *sin;
};

// ids [rows]; rotations: of each kind, one a row; `kept` by each layer's mixer, and `experts` of each -> logits [rows, head's
// rows]. std::out_of_range for an id beyond the vocabulary.
std::vector<LayerOutcome> decode(const DecodingModel& model, const std::vector<int64_t>& ids,
                                 const std::vector<std::vector<Rotation>>& rotations,
                                 const std::vector<Kept>& kept, const std::vector<const LayerExperts*>& experts,
                                 void* logits);

}  // namespace dali
