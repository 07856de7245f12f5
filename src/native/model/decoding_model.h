// A whole model while decoding: embeddings, layers one after another, norm, head.
#pragma once

#include <cstdint>
#include <vector>

#include "model/decoder_layer.h"
#include "model/embeddings.h"

namespace dali {

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

// ids [rows]; rotations: of each kind, one a row; `kept` by each layer's mixer, and `records` of each -> logits [rows, head's
// rows]. std::out_of_range for an id beyond the vocabulary.
std::vector<LayerOutcome> decode(const DecodingModel& model, const std::vector<int64_t>& ids,
                                 const std::vector<std::vector<Rotation>>& rotations,
                                 const std::vector<Kept>& kept, const std::vector<const Records*>& records,
                                 void* logits);

}  // namespace dali
