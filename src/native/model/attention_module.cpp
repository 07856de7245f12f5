#include "model/attention_module.h"

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

// x [rows, heads, width], in place: its first values times cos, plus those they turn with times sin.
void rotate(const Rotary& rotary, void* x, Dtype dtype, int rows, int heads, int width, const void* cos, const void* sin) {
    const int turned_width = rotary.width, half = turned_width / 2;
    if (rotary.turning == Turning::none) return;
    Workspace workspace;
    const auto row_of = [&] { return workspace.take<float>(width); };
    float *c = row_of(), *s = row_of(), *values = row_of(), *turned = row_of();
    for (int row = 0; row < rows; row++) {
        spread(rotary, cos, row, c);
        spread(rotary, sin, row, s);
        for (int head = 0; head < heads; head++) {
            const size_t at = size_t(row) * heads + head;
            read_row(x, dtype, at, width, values);
            if (rotary.turning == Turning::halves)
                for (int i = 0; i < half; i++) {
                    turned[i] = -values[i + half] * s[i];
                    turned[i + half] = values[i] * s[i + half];
                }
            else
                for (int i = 0; i < turned_width; i += 2) {
                    turned[i] = -values[i + 1] * s[i];
                    turned[i + 1] = values[i] * s[i + 1];
                }
            for (int i = 0; i < turned_width; i++) values[i] *= c[i];
            if (rotary.dtype == dtype) {
                round_to(dtype, values, turned_width);
                round_to(dtype, turned, turned_width);
            }
            for (int i = 0; i < turned_width; i++) values[i] += turned[i];
            write(values, width, dtype, x, at * width);
        }
    }
}

}  // namespace

void announce(const AttentionModule& module) {
    const Span spans[] = {span(module.query), span(module.key), span(module.value), span(module.out)};
    Pool::instance().announce(spans, 4);
}

void decode(const AttentionModule& module, const void* x, Dtype dtype, int rows, const void* cos, const void* sin,
            const std::vector<DecodingToken>& tokens, void* out) {
    const int width = module.width, value_width = module.value_width;
    const int all = module.heads * width, kept = module.kv_heads * width, valued = module.kv_heads * value_width;
    Workspace workspace;
    const auto rows_of = [&](int columns) { return workspace.take<char>(size_t(rows) * columns * item_bytes(dtype)); };
    char *query = rows_of(all), *key = rows_of(kept), *value = rows_of(valued), *mixed = rows_of(module.heads * value_width);
    project({{module.query, query}, {module.key, key}, {module.value, value}}, x, dtype, rows);
    const Span read_next = span(module.out);
    Pool::instance().announce(&read_next, 1);
    if (module.value_scale != 1) scale(value, module.value_scale, dtype, rows * valued);
    const auto norms = [&] {
        if (module.query_norm.weight) normalise(module.query_norm, query, dtype, int64_t(rows) * all, query);
        if (module.key_norm.weight) normalise(module.key_norm, key, dtype, int64_t(rows) * kept, key);
    };
    if (!module.norms_follow) norms();
    {
        const Timed timed(Part::attention);
        rotate(module.rotary, query, dtype, rows, module.heads, width, cos, sin);
        rotate(module.rotary, key, dtype, rows, module.kv_heads, width, cos, sin);
    }
    if (module.norms_follow) norms();
    {
        const Timed timed(Part::attention);
        attend({dtype, module.heads, module.kv_heads, width, value_width, module.scale,
                {query, all, width}, {key, kept, width}, {value, valued, value_width}, module.sinks, mixed}, tokens);
    }
    project({{module.out, out}}, mixed, dtype, rows);
}

}  // namespace dali
