#include "model/decoding_model.h"

#include <cstring>
#include <stdexcept>

#include "threads/spent.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "threads/pool.h"
#include "threads/workspace.h"

namespace dali {

std::vector<LayerOutcome> decode(const DecodingModel& model, const std::vector<int64_t>& ids, const std::vector<Rotation>& rotations,
                                 const std::vector<std::vector<DecodingToken>>& tokens, const std::vector<const Records*>& records,
                                 void* logits) {
    const int rows = int(ids.size()), hidden = model.before_head.width;
    const size_t row_bytes = hidden * item_bytes(model.dtype);
    const size_t turn_bytes = model.layers.front()->attention.width * item_bytes(model.dtype);
    Workspace workspace;
    char* x = workspace.take<char>(rows * row_bytes);
    char* cos = workspace.take<char>(rows * turn_bytes);
    char* sin = workspace.take<char>(rows * turn_bytes);
    for (int row = 0; row < rows; row++) {
        if (ids[row] < 0 || ids[row] >= model.vocabulary) throw std::out_of_range("a token beyond the vocabulary");
        std::memcpy(x + row * row_bytes, static_cast<const char*>(model.embeddings) + ids[row] * row_bytes, row_bytes);
        std::memcpy(cos + row * turn_bytes, rotations.at(row).cos, turn_bytes);
        std::memcpy(sin + row * turn_bytes, rotations.at(row).sin, turn_bytes);
    }
    std::vector<LayerOutcome> outcomes;
    for (size_t i = 0; i < model.layers.size(); i++) {
        const DecoderLayer* next = i + 1 < model.layers.size() ? model.layers[i + 1] : nullptr;
        outcomes.push_back(decode_layer(*model.layers[i], next, *records.at(i), x, model.dtype, rows, cos, sin, tokens.at(i), x));
    }
    const Span head = span(model.head);
    Pool::instance().announce(&head, 1);
    {
        const Timed timed(Part::norm);
        rms_norm(x, model.before_head.weight, model.dtype, rows, hidden, model.before_head.epsilon, x);
    }
    {
        const Timed timed(Part::dense);
        linear({{model.head.matrix, model.head.packed, model.head.bias, logits}}, model.head.columns, x, model.dtype, rows);
    }
    announce(model.layers.front()->attention);  // the next step begins with it
    return outcomes;
}

}  // namespace dali
