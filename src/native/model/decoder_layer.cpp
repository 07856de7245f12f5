#include "model/decoder_layer.h"

#include "disk/expert_cache.h"
#include "model/activation.h"
#include "threads/spent.h"
#include "threads/workspace.h"

namespace dali {

namespace {

// The step's rows as they go through a layer.
struct Shape {
    Dtype dtype;
    int rows, hidden;
    int values() const { return rows * hidden; }
    size_t bytes() const { return size_t(values()) * item_bytes(dtype); }
};

using Meanwhile = std::function<void()>;

// `meanwhile`: as LayerCall has it.
LayerOutcome compute_routed(const DecoderLayer& layer, const LayerExperts& experts, const Shape& of, const void* asked, const void* x,
                            void* out, const Meanwhile& meanwhile) {
    const Router& router = *layer.router;
    Workspace workspace;
    char* logits = workspace.take<char>(size_t(of.rows) * router.experts * item_bytes(router.logits_dtype));
    char* weights = workspace.take<char>(size_t(of.rows) * router.top_k * item_bytes(router.weights_dtype));
    int64_t* ids = workspace.take<int64_t>(size_t(of.rows) * router.top_k);
    {
        const Timed timed(Part::router);
        route(router, asked, of.dtype, of.rows, logits, weights, ids);
    }
    const Timed timed(Part::experts);
    LayerOutcome outcome{};
    outcome.active = compute_layer(*layer.layout, {experts, ids, weights, router.weights_dtype, of.rows, router.top_k, x, of.dtype, out,
                                                   layer.workload, &meanwhile});
    outcome.expert_seconds = double(timed.so_far()) * 1e-9;
    return outcome;
}

// shared [rows, hidden] times the sigmoid of each row of x times the gate's weight.
void gate_shared(const Values& weight, const Shape& of, const void* x, char* shared) {
    Workspace workspace;
    char* rounded = workspace.take<char>(of.rows * item_bytes(of.dtype));
    float* gates = workspace.take<float>(of.rows);
    gate_logits(weight, of.hidden, x, of.dtype, of.rows, rounded);
    sigmoid(rounded, of.dtype, of.rows, rounded);
    read_row(rounded, of.dtype, 0, of.rows, gates);
    scale_rows(shared, gates, of.dtype, of.rows, of.hidden);
}

// Has experts read that the next layer's router would choose, were its input what this layer's is before its experts: `residual`.
void look_ahead(const DecoderLayer* next, const LayerExperts& experts, const Shape& of, const void* residual) {
    if (!experts.cache || !experts.cache->looks_ahead() || !next || !next->router || next->beside.before_experts.weight) return;
    const Router& router = *next->router;
    Workspace workspace;
    char* x = workspace.take<char>(of.bytes());
    char* logits = workspace.take<char>(size_t(of.rows) * router.experts * item_bytes(router.logits_dtype));
    char* weights = workspace.take<char>(size_t(of.rows) * router.top_k * item_bytes(router.weights_dtype));
    int64_t* ids = workspace.take<int64_t>(size_t(of.rows) * router.top_k);
    if (next->before_mlp.weight) normalise(next->before_mlp, residual, of.dtype, of.values(), x);
    route(router, next->before_mlp.weight ? x : residual, of.dtype, of.rows, logits, weights, ids);
    experts.cache->foresee(experts.layer + 1, ids, of.rows, router.top_k);
}

// What follows attention: experts, a dense MLP, or the sum of both. `residual`: what x is made of.
LayerOutcome compute_block(const DecoderLayer& layer, const DecoderLayer* next, const LayerExperts& experts, const Shape& of,
                           const void* residual, const void* x, void* out) {
    if (!layer.router) {
        compute(*layer.mlp, x, of.dtype, of.rows, out);
        return {};
    }
    Workspace workspace;
    char* shared = layer.mlp ? workspace.take<char>(of.bytes()) : nullptr;
    bool computed = !layer.mlp;
    const auto compute_shared = [&] {
        compute(*layer.mlp, x, of.dtype, of.rows, shared);
        if (layer.shared_gate.at) gate_shared(layer.shared_gate, of, x, shared);
        computed = true;
    };
    const Meanwhile meanwhile = [&] {
        look_ahead(next, experts, of, residual);
        if (!computed) compute_shared();
    };
    const LayerOutcome outcome = compute_routed(layer, experts, of, x, x, out, meanwhile);
    if (!layer.mlp) return outcome;
    if (!computed) compute_shared();
    add(out, shared, of.dtype, of.values(), out);
    return outcome;
}

// The same where experts stand beside the MLP: x is before its norm.
LayerOutcome compute_beside(const DecoderLayer& layer, const LayerExperts& experts, const Shape& of, const void* x, void* out) {
    const auto normed = [&](const Norm& norm, const void* from, void* to) { normalise(norm, from, of.dtype, of.values(), to); };
    Workspace workspace;
    char *asked = workspace.take<char>(of.bytes()), *other = workspace.take<char>(of.bytes());
    normed(layer.before_mlp, x, other);
    compute(*layer.mlp, other, of.dtype, of.rows, out);
    normed(layer.beside.after_mlp, out, out);
    normed(layer.beside.before_router, x, asked);
    normed(layer.beside.before_experts, x, other);
    char* found = workspace.take<char>(of.bytes());
    const LayerOutcome outcome = compute_routed(layer, experts, of, asked, other, found, [] {});
    normed(layer.beside.after_experts, found, found);
    add(out, found, of.dtype, of.values(), out);
    return outcome;
}

// sum = residual + part, after its norm and scale.
void join(const DecoderLayer& layer, const Norm& norm, const Shape& of, const void* residual, char* part, void* sum) {
    if (norm.weight) normalise(norm, part, of.dtype, of.values(), part);
    if (layer.residual_scale != 1) scale(part, layer.residual_scale, of.dtype, of.values());
    add(residual, part, of.dtype, of.values(), sum);
}

struct Mixing {
    const void* x;
    const Shape& of;
    const void *cos, *sin;
    const Kept& kept;
    void* out;
    void operator()(const AttentionModule* module) const { decode(*module, x, of.dtype, of.rows, cos, sin, kept.tokens, out); }
    void operator()(const DeltaNet* module) const { mix(*module, x, of.dtype, of.rows, kept.states, out); }
    void operator()(const Mamba2* module) const { mix(*module, x, of.dtype, of.rows, kept.states, out); }
    void operator()(std::monostate) const {}
    void operator()(const ShortConvolution* module) const { mix(*module, x, of.dtype, of.rows, kept.states, out); }
};

struct Announcing {
    template <class Module>
    void operator()(const Module* module) const { announce(*module); }
    void operator()(std::monostate) const {}
};

}  // namespace

void announce(const Mixer& mixer) {
    std::visit(Announcing{}, mixer);
}

LayerOutcome decode_layer(const DecoderLayer& layer, const DecoderLayer* next, const LayerExperts& experts, const void* x, Dtype dtype,
                          int rows, const void* cos, const void* sin, const Kept& kept, void* out) {
    const Shape of{dtype, rows, layer.hidden};
    Workspace workspace;
    const auto rows_of = [&] { return workspace.take<char>(of.bytes()); };
    char *normed = rows_of(), *part = rows_of(), *between = rows_of();
    const auto input = [&](const Norm& norm, const void* from) -> const void* {
        if (!norm.weight) return from;
        normalise(norm, from, dtype, of.values(), normed);
        return normed;
    };
    const bool mixes = !std::holds_alternative<std::monostate>(layer.mixer), computes = layer.router || layer.mlp;
    if (mixes) {
        std::visit(Mixing{input(layer.before_attention, x), of, cos, sin, kept, part}, layer.mixer);
        if (next && !computes) announce(next->mixer);
        join(layer, layer.after_attention, of, x, part, computes ? between : out);
    }
    if (!computes) return {};
    const void* residual = mixes ? between : x;
    const bool beside = layer.beside.before_experts.weight;
    const LayerOutcome outcome = beside ? compute_beside(layer, experts, of, residual, part)
                                        : compute_block(layer, next, experts, of, residual, input(layer.before_mlp, residual), part);
    if (next) announce(next->mixer);
    join(layer, layer.after_mlp, of, residual, part, out);
    if (layer.output_scale.at) {
        float by;
        read_row(layer.output_scale.at, layer.output_scale.dtype, 0, 1, &by);
        scale(out, by, dtype, of.values());
    }
    return outcome;
}

}  // namespace dali
