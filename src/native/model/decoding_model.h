// A whole model while decoding: embeddings, layers one after another, norm, head.
#pragma once

#include <cstdint>
#include <vector>

#include "model/decoder_layer.h"

namespace dali {

struct DecodingModel {
    Dtype dtype;               // of everything but the packed weights
    const void* embeddings;    // [vocabulary, hidden]
    int64_t vocabulary;
    std::vector<const DecoderLayer*> layers;
    Norm before_head;
    PackedLinear head;
};

// Where one token's rotation lies, [width] each.
struct Rotation {
    const void *cos, *sin;
};

// ids [rows]; `tokens` of each layer, as in attend(), and `records` of each -> logits [rows, head's rows]. std::out_of_range for an id
// beyond the vocabulary.
std::vector<LayerOutcome> decode(const DecodingModel& model, const std::vector<int64_t>& ids, const std::vector<Rotation>& rotations,
                                 const std::vector<std::vector<DecodingToken>>& tokens, const std::vector<const Records*>& records,
                                 void* logits);

}  // namespace dali
