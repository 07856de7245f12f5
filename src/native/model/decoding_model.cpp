#include "model/decoding_model.h"

#include <cstring>
#include <stdexcept>

#include "ops/repack.h"
#include "threads/workspace.h"

namespace dali {

namespace {

Dtype dtype_of(Format format) { return format == Format::f32 ? Dtype::f32 : format == Format::bf16 ? Dtype::bf16 : Dtype::f16; }

// One row of a tile of floats, whose lines hold 4 bytes of each row.
void float_row(const Embeddings& of, int64_t id, int hidden, float* out) {
    Workspace workspace;
    const int words = of.matrix.columns * bits(of.matrix.format) / 32;
    char* row = workspace.take<char>(4 * words);
    const uint8_t* tile = of.packed + id / TILE_ROWS * of.matrix.tile_bytes + id % TILE_ROWS * 4;
    for (int i = 0; i < words; i++) std::memcpy(row + 4 * i, tile + size_t(i) * LINE, 4);
    read_row(row, dtype_of(of.matrix.format), 0, hidden, out);
}

// One kind's cos and sin of all rows, side by side as layers read them.
struct Gathered {
    char *cos, *sin;
};

void divide(void* values, float by, Dtype dtype, int count) {
    Workspace workspace;
    float* row = workspace.take<float>(count);
    read_row(values, dtype, 0, count, row);
    for (int i = 0; i < count; i++) row[i] /= by;
    write(row, count, dtype, values, 0);
}

}  // namespace

void look_up(const Embeddings& embeddings, const std::vector<int64_t>& ids, int hidden, Dtype dtype, void* x) {
    Workspace workspace;
    float* values = embeddings.packed ? workspace.take<float>(hidden) : nullptr;
    const size_t row_bytes = hidden * item_bytes(dtype);
    for (size_t row = 0; row < ids.size(); row++) {
        const int64_t id = ids[row];
        if (id < 0 || id >= embeddings.vocabulary) throw std::out_of_range("a token beyond the vocabulary");
        if (embeddings.table) {
            std::memcpy(static_cast<char*>(x) + row * row_bytes, static_cast<const char*>(embeddings.table) + id * row_bytes, row_bytes);
            continue;
        }
        if (is_quantized(embeddings.matrix.format))
            rows_of(embeddings.matrix, embeddings.packed, hidden, &id, 1, values);
        else
            float_row(embeddings, id, hidden, values);
        write(values, hidden, dtype, x, row * hidden);
    }
    if (embeddings.scale != 1) scale(x, embeddings.scale, dtype, int(ids.size()) * hidden);
}

std::vector<LayerOutcome> decode(const DecodingModel& model, const std::vector<int64_t>& ids,
                                 const std::vector<std::vector<Rotation>>& rotations,
                                 const std::vector<Kept>& kept, const std::vector<const LayerExperts*>& experts,
                                 void* logits) {
    const int rows = int(ids.size()), hidden = model.before_head.width;
    Workspace workspace;
    char* x = workspace.take<char>(rows * hidden * item_bytes(model.dtype));
    look_up(model.embeddings, ids, hidden, model.dtype, x);
    std::vector<Gathered> gathered(rotations.size(), Gathered{});
    for (size_t i = 0; i < model.layers.size(); i++) {
        const AttentionModule* const* attention = std::get_if<const AttentionModule*>(&model.layers[i]->mixer);
        if (!attention) continue;
        const Rotary& rotary = (*attention)->rotary;
        Gathered& to = gathered.at(model.rotations.at(i));
        if (to.cos || rotary.turning == Turning::none) continue;
        const size_t bytes = rotary.given * item_bytes(rotary.dtype);
        to = {workspace.take<char>(rows * bytes), workspace.take<char>(rows * bytes)};
        for (int row = 0; row < rows; row++) {
            const Rotation& from = rotations[model.rotations[i]].at(row);
            std::memcpy(to.cos + row * bytes, from.cos, bytes);
            std::memcpy(to.sin + row * bytes, from.sin, bytes);
        }
    }
    std::vector<LayerOutcome> outcomes;
    for (size_t i = 0; i < model.layers.size(); i++) {
        const DecoderLayer* next = i + 1 < model.layers.size() ? model.layers[i + 1] : nullptr;
        const Gathered turn = gathered.empty() ? Gathered{} : gathered[model.rotations[i]];
        outcomes.push_back(
            decode_layer(*model.layers[i], next, *experts.at(i), x, model.dtype, rows, turn.cos, turn.sin, kept.at(i), x));
    }
    const Span head = span(model.head);
    Pool::instance().announce(&head, 1);
    normalise(model.before_head, x, model.dtype, rows * hidden, x);
    project({{model.head, logits}}, x, model.dtype, rows);
    if (model.logits_divisor != 1) divide(logits, model.logits_divisor, model.dtype, rows * model.head.matrix.rows);
    announce(model.layers.front()->mixer);  // the next step begins with it
    return outcomes;
}

}  // namespace dali
