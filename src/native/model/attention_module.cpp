#include "model/attention_module.h"

#include <algorithm>
#include <cstring>

#include "kernels/variants.h"
#include "lanes/floats.h"
#include "threads/pieces.h"
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

// The values [width] of one head, which turn with those beside them: times c, plus those times s.
void turn_head(const Rotary& rotary, Dtype dtype, const float* __restrict c, const float* __restrict s, float* __restrict values,
               float* __restrict turned) {
    const int width = rotary.width, half = width / 2;
    const bool rounds = rotary.dtype == dtype && dtype != Dtype::f32;
    if (rotary.turning == Turning::halves && !rounds) {  // most models: as below, in one go
        for (int i = 0; i < half; i++) {
            const float early = values[i], late = values[i + half];
            values[i] = early * c[i] + -late * s[i];
            values[i + half] = late * c[i + half] + early * s[i + half];
        }
        return;
    }
    if (rotary.turning == Turning::unzipped) {
        std::copy_n(values, width, turned);
        for (int i = 0; i < half; i++) {
            values[i] = turned[2 * i];
            values[i + half] = turned[2 * i + 1];
        }
    }
    if (rotary.turning == Turning::neighbours)
        for (int i = 0; i < width; i += 2) {
            turned[i] = -values[i + 1] * s[i];
            turned[i + 1] = values[i] * s[i + 1];
        }
    else
        for (int i = 0; i < half; i++) {
            turned[i] = -values[i + half] * s[i];
            turned[i + half] = values[i] * s[i + half];
        }
    for (int i = 0; i < width; i++) values[i] *= c[i];
    if (rounds) {
        round_to(dtype, values, width);
        round_to(dtype, turned, width);
    }
    for (int i = 0; i < width; i++) values[i] += turned[i];
}

// x [rows, heads, width], in place: of each head the values from `begin` on.
void rotate(const Rotary& rotary, void* x, Dtype dtype, int rows, int heads, int width, int begin, const void* cos, const void* sin) {
    if (rotary.turning == Turning::none) return;
    in_pieces(rows, rows_of_piece(int64_t(heads) * rotary.width), [&](int64_t first, int some) {
        Workspace workspace;
        const auto row_of = [&] { return workspace.take<float>(rotary.width); };
        float *c = row_of(), *s = row_of(), *values = row_of(), *turned = row_of();
        for (int row = int(first); row < first + some; row++) {
            spread(rotary, cos, row, c);
            spread(rotary, sin, row, s);
            for (int head = 0; head < heads; head++) {
                const size_t at = (size_t(row) * heads + head) * width + begin;
                read_at(x, dtype, int64_t(at), rotary.width, values);
                turn_head(rotary, dtype, c, s, values, turned);
                write(values, rotary.width, dtype, x, at);
            }
        }
    });
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

// Parts the queries [rows, heads, 2, width] from the gates behind them.
void part(const char* both, int64_t heads, size_t bytes, char* query, char* gate) {
    for (int64_t head = 0; head < heads; head++) {
        std::memcpy(query + head * bytes, both + 2 * head * bytes, bytes);
        std::memcpy(gate + head * bytes, both + (2 * head + 1) * bytes, bytes);
    }
}

// found [count] times the sigmoid of gate [count].
void gate_found(const char* gate, Dtype dtype, int64_t count, char* found) {
    const Variant& variant = current_variant();
    in_pieces(count, PIECE, [&](int64_t first, int some) {
        float gates[PIECE], values[PIECE];
        read_at(gate, dtype, first, some, gates);
        std::fill_n(gates + some, padded(some) - some, 0.0f);
        variant.sigmoids(gates, padded(some));
        round_to(dtype, gates, some);
        read_at(found, dtype, first, some, values);
        variant.multiply(values, gates, some);
        write(values, some, dtype, found, size_t(first));
    });
}

void attend_to(const Projections& from, const Step& step, const std::vector<DecodingToken>& tokens, void* mixed) {
    const AttentionModule& module = step.module;
    const int width = module.width, value_width = module.value_width;
    const int all = module.heads * width, kept = module.kv_heads * width, valued = module.kv_heads * value_width;
    char *query = step.take(all), *key = step.take(kept), *value = step.take(valued);
    char *both = from.gated ? step.take(2 * all) : query, *gate = from.gated ? step.take(all) : nullptr;
    project({{from.query, both}, {from.key, key}, {from.value, value}}, step.x, step.dtype, step.rows);
    step.read_next(module.out);
    if (gate) part(both, int64_t(step.rows) * module.heads, width * item_bytes(step.dtype), query, gate);
    if (from.value_scale != 1) scale(value, from.value_scale, step.dtype, step.rows * valued);
    step.norm(from.value_norm, value, valued);
    const auto norms = [&] {
        step.norm(from.query_norm, query, all);
        step.norm(from.key_norm, key, kept);
    };
    if (!from.norms_follow) norms();
    step.turn(query, module.heads, width, 0);
    step.turn(key, module.kv_heads, width, 0);
    if (from.norms_follow) norms();
    const Timed timed(Part::attention);
    attend({step.dtype, module.heads, module.kv_heads, width, value_width, module.scale, {query, all, width}, {key, kept, width},
            {value, valued, value_width}, module.sinks, mixed}, tokens);
    if (gate) gate_found(gate, step.dtype, int64_t(step.rows) * module.heads * value_width, static_cast<char*>(mixed));
}

void attend_to(const LatentProjections& from, const Step& step, const std::vector<DecodingToken>& tokens, void* mixed) {
    const AttentionModule& module = step.module;
    const int heads = module.heads, width = module.width, rotated = module.rotary.width, rank = from.heads.rank, kept = rank + rotated;
    const size_t item = item_bytes(step.dtype);
    char *query = step.take(heads * width), *down = step.take(kept), *latent = step.take(rank);
    if (from.query_down.empty()) project({{from.query, query}, {from.keys_down, down}}, step.x, step.dtype, step.rows);
    else {
        char* lowered = step.take(from.query.columns);
        project({{from.query_down[0], lowered}, {from.keys_down, down}}, step.x, step.dtype, step.rows);
        step.norm(from.query_norm, lowered, from.query.columns);
        project({{from.query, query}}, lowered, step.dtype, step.rows);
    }
    step.turn(query, heads, width, width - rotated);
    step.turn(down, 1, kept, rank);
    for (int row = 0; row < step.rows; row++) std::memcpy(latent + row * rank * item, down + row * kept * item, rank * item);
    step.norm(from.keys_norm, latent, rank);
    for (int row = 0; row < step.rows; row++) std::memcpy(down + row * kept * item, latent + row * rank * item, rank * item);
    step.read_next(module.out);
    const Timed timed(Part::attention);
    attend(from.heads, {step.dtype, rotated, module.scale, {query, int64_t(heads) * width, width}, down, module.sinks, mixed}, tokens);
}

void announce_first(const Projections& projections, const PackedLinear& out) {
    const Span spans[] = {span(projections.query), span(projections.key), span(projections.value), span(out)};
    Pool::instance().announce(spans, 4);
}

void announce_first(const LatentProjections& projections, const PackedLinear& out) {
    const Span spans[] = {span(projections.query_down.empty() ? projections.query : projections.query_down[0]),
                          span(projections.keys_down), span(out)};
    Pool::instance().announce(spans, 3);
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
    std::visit([&](const auto& projections) { attend_to(projections, step, tokens, mixed); }, module.projections);
    project({{module.out, out}}, mixed, dtype, rows);
}

}  // namespace dali
