#include "decoding_model.h"

#include <cstring>
#include <stdexcept>

#include "clock.h"
#include "linear.h"
#include "norm.h"
#include "pool.h"

namespace dali {

std::vector<LayerOutcome> decode(const DecodingModel& model, const std::vector<int64_t>& ids, const std::vector<Rotation>& rotations,
                                 const std::vector<std::vector<DecodingToken>>& tokens, void* logits) {
    const int rows = int(ids.size()), hidden = model.before_head.width;
    const size_t row_bytes = hidden * item_bytes(model.dtype);
    const size_t turn_bytes = model.layers.front()->attention.width * item_bytes(model.dtype);
    static thread_local std::vector<char> x, cos, sin;
    x.resize(rows * row_bytes);
    cos.resize(rows * turn_bytes);
    sin.resize(rows * turn_bytes);
    for (int row = 0; row < rows; row++) {
        if (ids[row] < 0 || ids[row] >= model.vocabulary) throw std::out_of_range("a token beyond the vocabulary");
        std::memcpy(x.data() + row * row_bytes, static_cast<const char*>(model.embeddings) + ids[row] * row_bytes, row_bytes);
        std::memcpy(cos.data() + row * turn_bytes, rotations.at(row).cos, turn_bytes);
        std::memcpy(sin.data() + row * turn_bytes, rotations.at(row).sin, turn_bytes);
    }
    std::vector<LayerOutcome> outcomes;
    for (size_t i = 0; i < model.layers.size(); i++) {
        const DecoderLayer* next = i + 1 < model.layers.size() ? model.layers[i + 1] : nullptr;
        outcomes.push_back(decode_layer(*model.layers[i], next, x.data(), model.dtype, rows, cos.data(), sin.data(), tokens.at(i), x.data()));
    }
    const Span head = span(model.head);
    Pool::instance().announce(&head, 1);
    {
        const Timed timed(Part::norm);
        rms_norm(x.data(), model.before_head.weight, model.dtype, rows, hidden, model.before_head.epsilon, x.data());
    }
    {
        const Timed timed(Part::dense);
        linear({{model.head.matrix, model.head.packed, model.head.bias, logits}}, model.head.columns, x.data(), model.dtype, rows);
    }
    announce(model.layers.front()->attention);  // the next step begins with it
    return outcomes;
}

}  // namespace dali
