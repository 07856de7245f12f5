#include "model/decoder_layer.h"

#include "threads/spent.h"
#include "model/layer.h"
#include "ops/norm.h"
#include "ops/route.h"
#include "threads/workspace.h"

namespace dali {

namespace {

// sum [count] = a + b.
void add(const void* a, const void* b, Dtype dtype, int count, void* sum) {
    Workspace workspace;
    float* left = workspace.take<float>(count);
    float* right = workspace.take<float>(count);
    read_row(a, dtype, 0, count, left);
    read_row(b, dtype, 0, count, right);
    for (int i = 0; i < count; i++) left[i] += right[i];
    write(left, count, dtype, sum, 0);
}

}  // namespace

LayerOutcome decode_layer(const DecoderLayer& layer, const DecoderLayer* next, const Records& records, const void* x, Dtype dtype,
                          int rows, const void* cos, const void* sin, const std::vector<DecodingToken>& tokens, void* out) {
    const int hidden = layer.before_attention.width, experts = layer.router.experts, top_k = layer.router.top_k;
    const size_t item = item_bytes(dtype), bytes = size_t(rows) * hidden * item;
    Workspace workspace;
    char* normed = workspace.take<char>(bytes);
    char* attended = workspace.take<char>(bytes);
    char* between = workspace.take<char>(bytes);
    char* logits = workspace.take<char>(size_t(rows) * experts * item);
    char* weights = workspace.take<char>(size_t(rows) * top_k * item_bytes(layer.router.weights_dtype));
    int64_t* ids = workspace.take<int64_t>(size_t(rows) * top_k);
    const auto normalise = [&](const Norm& norm, const void* from) {
        const Timed timed(Part::norm);
        rms_norm(from, norm.weight, dtype, rows, hidden, norm.epsilon, normed);
    };

    normalise(layer.before_attention, x);
    decode(layer.attention, normed, dtype, rows, cos, sin, tokens, attended);
    add(x, attended, dtype, rows * hidden, between);
    normalise(layer.before_experts, between);
    {
        const Timed timed(Part::router);
        route({normed, layer.router.weight, dtype, rows, hidden, experts, top_k, layer.router.normalise, logits,
               weights, layer.router.weights_dtype, ids});
    }
    LayerOutcome outcome{};
    {
        const Timed timed(Part::experts);
        outcome.active = compute_layer(layer.layout, {records, ids, weights, layer.router.weights_dtype, rows,
                                                      top_k, normed, dtype, attended});
        outcome.expert_seconds = double(timed.so_far()) * 1e-9;
    }
    if (next) announce(next->attention);
    add(between, attended, dtype, rows * hidden, out);
    return outcome;
}

}  // namespace dali
