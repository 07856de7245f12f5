#include "model/attention_module.h"

#include <algorithm>
#include <cstring>

#include "kernels/variants.h"
#include "lanes/floats.h"
#include "threads/spent.h"
#include "threads/workspace.h"

namespace dali {

namespace {

// One row's cos or sin [given] -> [width], one a value to rotate.
void spread(const Rotary& rotary, const void* from, int row, float* to) {
    read_row(from, rotary.dtype, row, rotary.given, to);
    const int half = rotary.width / 2;
    if (rotary.turning == Turning::neighbours)  // the first half holds all angles
        for (int i = half - 1; i >= 0; i--) to[2 * i] = to[2 * i + 1] = to[i];
    else if (rotary.given == half)
        for (int i = 0; i < half; i++) to[i + half] = to[i];
}

// x [rows, heads, width], in place: of each head the values from `begin` on, times cos, plus those they turn with times sin.
void rotate(const Rotary& rotary, void* x, Dtype dtype, int rows, int heads, int width, int begin, const void* cos, const void* sin) {
    const int turned_width = rotary.width, half = turned_width / 2;
    if (rotary.turning == Turning::none) return;
    Workspace workspace;
    const auto row_of = [&] { return workspace.take<float>(turned_width); };
    float *c = row_of(), *s = row_of(), *values = row_of(), *turned = row_of();
    for (int row = 0; row < rows; row++) {
        spread(rotary, cos, row, c);
        spread(rotary, sin, row, s);
        for (int head = 0; head < heads; head++) {
            const size_t at = (size_t(row) * heads + head) * width + begin;
            read_row(static_cast<const char*>(x) + at * item_bytes(dtype), dtype, 0, turned_width, values);
            if (rotary.turning == Turning::unzipped) {
                std::copy_n(values, turned_width, turned);
                for (int i = 0; i < half; i++) {
                    values[i] = turned[2 * i];
                    values[i + half] = turned[2 * i + 1];
                }
            }
            if (rotary.turning == Turning::neighbours)
                for (int i = 0; i < turned_width; i += 2) {
                    turned[i] = -values[i + 1] * s[i];
                    turned[i + 1] = values[i] * s[i + 1];
                }
            else
                for (int i = 0; i < half; i++) {
                    turned[i] = -values[i + half] * s[i];
                    turned[i + half] = values[i] * s[i + half];
                }
            for (int i = 0; i < turned_width; i++) values[i] *= c[i];
            if (rotary.dtype == dtype) {
                round_to(dtype, values, turned_width);
                round_to(dtype, turned, turned_width);
            }
            for (int i = 0; i < turned_width; i++) values[i] += turned[i];
            write(values, turned_width, dtype, x, at);
        }
    }
}

// A step's rows on their way through a module.
struct Step {
    const AttentionModule& module;
    Workspace& workspace;
    Dtype dtype;
    int rows;
    const void *x, *cos, *sin;

    char* take(int columns) const { return workspace.take<char>(size_t(rows) * columns * item_bytes(dtype)); }
    void turn(char* to, int heads, int width, int begin) const {
        const Timed timed(Part::attention);
        rotate(module.rotary, to, dtype, rows, heads, width, begin, cos, sin);
    }
    void norm(const Norm& norm, char* of, int columns) const {
        if (norm.weight) normalise(norm, of, dtype, int64_t(rows) * columns, of);
    }
    void read_next(const PackedLinear& linear) const {
        const Span next = span(linear);
        Pool::instance().announce(&next, 1);
    }
};

struct Heads {
    Rows query, key, value;
    const char* gate = nullptr;  // [rows, heads, value width], if there is one
};

// Parts the queries [rows, heads, 2, width] from the gates behind them.
void part(const char* both, int64_t heads, size_t bytes, char* query, char* gate) {
    for (int64_t head = 0; head < heads; head++) {
        std::memcpy(query + head * bytes, both + 2 * head * bytes, bytes);
        std::memcpy(gate + head * bytes, both + (2 * head + 1) * bytes, bytes);
    }
}

// found [count] times the sigmoid of gate [count].
void gate_found(const char* gate, Dtype dtype, int64_t count, char* found) {
    constexpr int PIECE = 1024;  // values that stay in the nearest cache; whole vectors
    const Variant& variant = current_variant();
    const size_t item = item_bytes(dtype);
    float gates[PIECE], values[PIECE];
    for (int64_t begin = 0; begin < count; begin += PIECE) {
        const int some = int(std::min<int64_t>(PIECE, count - begin));
        read_row(gate + begin * item, dtype, 0, some, gates);
        std::fill_n(gates + some, padded(some) - some, 0.0f);
        variant.sigmoids(gates, padded(some));
        round_to(dtype, gates, some);
        read_row(found + begin * item, dtype, 0, some, values);
        variant.multiply(values, gates, some);
        write(values, some, dtype, found, begin);
    }
}

Heads project_heads(const Step& step, const Projections& from) {
    const AttentionModule& module = step.module;
    const int width = module.width, value_width = module.value_width;
    const int all = module.heads * width, kept = module.kv_heads * width, valued = module.kv_heads * value_width;
    char *query = step.take(all), *key = step.take(kept), *value = step.take(valued);
    char *both = from.gated ? step.take(2 * all) : query, *gate = from.gated ? step.take(all) : nullptr;
    project({{from.query, both}, {from.key, key}, {from.value, value}}, step.x, step.dtype, step.rows);
    step.read_next(module.out);
    if (gate) part(both, int64_t(step.rows) * module.heads, width * item_bytes(step.dtype), query, gate);
    if (from.value_scale != 1) scale(value, from.value_scale, step.dtype, step.rows * valued);
    const auto norms = [&] {
        step.norm(from.query_norm, query, all);
        step.norm(from.key_norm, key, kept);
    };
    if (!from.norms_follow) norms();
    step.turn(query, module.heads, width, 0);
    step.turn(key, module.kv_heads, width, 0);
    if (from.norms_follow) norms();
    return {{query, all, width}, {key, kept, width}, {value, valued, value_width}, gate};
}

Heads project_heads(const Step& step, const LatentProjections& from) {
    const AttentionModule& module = step.module;
    const int heads = module.heads, width = module.width, value_width = module.value_width;
    const int turned = module.rotary.width, begun = width - turned, rank = from.keys_up.columns, raised = begun + value_width;
    const size_t item = item_bytes(step.dtype);
    char *query = step.take(heads * width), *down = step.take(rank + turned), *latent = step.take(rank);
    char *up = step.take(heads * raised), *key = step.take(heads * width);
    if (from.query_down.empty()) project({{from.query, query}, {from.keys_down, down}}, step.x, step.dtype, step.rows);
    else {
        char* lowered = step.take(from.query.columns);
        project({{from.query_down[0], lowered}, {from.keys_down, down}}, step.x, step.dtype, step.rows);
        step.norm(from.query_norm, lowered, from.query.columns);
        project({{from.query, query}}, lowered, step.dtype, step.rows);
    }
    step.turn(query, heads, width, begun);
    step.turn(down, 1, rank + turned, rank);
    for (int row = 0; row < step.rows; row++) std::memcpy(latent + row * rank * item, down + row * (rank + turned) * item, rank * item);
    step.norm(from.keys_norm, latent, rank);
    project({{from.keys_up, up}}, latent, step.dtype, step.rows);
    step.read_next(module.out);
    for (int row = 0; row < step.rows; row++)
        for (int head = 0; head < heads; head++) {
            const size_t pair = size_t(row) * heads + head;
            std::memcpy(key + pair * width * item, up + pair * raised * item, begun * item);
            std::memcpy(key + (pair * width + begun) * item, down + (size_t(row) * (rank + turned) + rank) * item, turned * item);
        }
    return {{query, heads * width, width}, {key, heads * width, width}, {up + begun * item, heads * raised, raised}};
}

void announce_first(const Projections& projections, const PackedLinear& out) {
    const Span spans[] = {span(projections.query), span(projections.key), span(projections.value), span(out)};
    Pool::instance().announce(spans, 4);
}

void announce_first(const LatentProjections& projections, const PackedLinear& out) {
    const Span spans[] = {span(projections.query_down.empty() ? projections.query : projections.query_down[0]),
                          span(projections.keys_down), span(projections.keys_up), span(out)};
    Pool::instance().announce(spans, 4);
}

}  // namespace

void announce(const AttentionModule& module) {
    std::visit([&](const auto& projections) { announce_first(projections, module.out); }, module.projections);
}

void decode(const AttentionModule& module, const void* x, Dtype dtype, int rows, const void* cos, const void* sin,
            const std::vector<DecodingToken>& tokens, void* out) {
    Workspace workspace;
    const Step step{module, workspace, dtype, rows, x, cos, sin};
    char* mixed = step.take(module.heads * module.value_width);
    const Heads heads = std::visit([&](const auto& projections) { return project_heads(step, projections); }, module.projections);
    {
        const Timed timed(Part::attention);
        attend({dtype, module.heads, module.kv_heads, module.width, module.value_width, module.scale, heads.query, heads.key,
                heads.value, module.sinks, mixed}, tokens);
        if (heads.gate) gate_found(heads.gate, dtype, int64_t(rows) * module.heads * module.value_width, mixed);
    }
    project({{module.out, out}}, mixed, dtype, rows);
}

}  // namespace dali
