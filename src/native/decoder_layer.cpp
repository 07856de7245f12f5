#include "decoder_layer.h"

#include "clock.h"
#include "layer.h"
#include "norm.h"
#include "route.h"

namespace dali {

namespace {

// sum [count] = a + b.
void add(const void* a, const void* b, Dtype dtype, int count, void* sum) {
    static thread_local std::vector<float> left, right;
    left.resize(count);
    right.resize(count);
    read_row(a, dtype, 0, count, left.data());
    read_row(b, dtype, 0, count, right.data());
    for (int i = 0; i < count; i++) left[i] += right[i];
    write(left.data(), count, dtype, sum, 0);
}

}  // namespace

LayerOutcome decode_layer(const DecoderLayer& layer, const DecoderLayer* next, const void* x, Dtype dtype, int rows, const void* cos,
                          const void* sin, const std::vector<DecodingToken>& tokens, void* out) {
    const int hidden = layer.before_attention.width, experts = int(layer.records.size()), top_k = layer.router.top_k;
    const size_t item = item_bytes(dtype), bytes = size_t(rows) * hidden * item;
    static thread_local std::vector<char> normed, attended, between, logits, weights;
    static thread_local std::vector<int64_t> ids;
    normed.resize(bytes);
    attended.resize(bytes);
    between.resize(bytes);
    logits.resize(size_t(rows) * experts * item);
    weights.resize(size_t(rows) * top_k * item_bytes(layer.router.weights_dtype));
    ids.resize(size_t(rows) * top_k);
    const auto normalise = [&](const Norm& norm, const void* from) {
        const Timed timed(Part::norm);
        rms_norm(from, norm.weight, dtype, rows, hidden, norm.epsilon, normed.data());
    };

    normalise(layer.before_attention, x);
    decode(layer.attention, normed.data(), dtype, rows, cos, sin, tokens, attended.data());
    add(x, attended.data(), dtype, rows * hidden, between.data());
    normalise(layer.before_experts, between.data());
    {
        const Timed timed(Part::router);
        route({normed.data(), layer.router.weight, dtype, rows, hidden, experts, top_k, layer.router.normalise, logits.data(),
               weights.data(), layer.router.weights_dtype, ids.data()});
    }
    LayerOutcome outcome{};
    {
        const Timed timed(Part::experts);
        outcome.active = compute_layer(layer.layout, {layer.records, ids.data(), weights.data(), layer.router.weights_dtype, rows,
                                                      top_k, normed.data(), dtype, attended.data()});
        outcome.expert_seconds = double(timed.so_far()) * 1e-9;
    }
    if (next) announce(next->attention);
    add(between.data(), attended.data(), dtype, rows * hidden, out);
    return outcome;
}

}  // namespace dali
