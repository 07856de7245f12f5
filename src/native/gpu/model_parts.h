// What gpu::Model reads off a model's description, and what it has no kernels for.
#pragma once

#include <stdexcept>

#include "calls.h"
#include "model/decoder_layer.h"

namespace dali::gpu {

constexpr int MOST_HIGHEST_ROWS = 32;  // of more, the host looks for the highest logits itself

inline const AttentionModule& attention_of(const DecoderLayer& layer) {
    const auto* module = std::get_if<const AttentionModule*>(&layer.mixer);
    if (!module) throw std::invalid_argument("recurrent layers");
    return **module;
}

inline const Projections& projections_of(const AttentionModule& module) {
    const Projections* projections = std::get_if<Projections>(&module.projections);
    if (!projections) throw std::invalid_argument("attention over a latent");
    if (projections->value_norm.weight) throw std::invalid_argument("norms of values");
    if (projections->gated) throw std::invalid_argument("gated attention");
    const bool whole = projections->query_norm.width > module.width || projections->key_norm.width > module.width;
    if (projections->norms_follow && whole) throw std::invalid_argument("norms of all heads after their rotation");
    return *projections;
}

inline size_t bytes_of(const Values& values, size_t count) { return count * item_bytes(values.dtype); }

// Floats that attention works in for one token whose keys are so many parts.
inline size_t attention_floats(const AttentionModule& module, int parts) {
    return size_t(module.heads) * parts * (PART + 2 + module.value_width);
}

}  // namespace dali::gpu
