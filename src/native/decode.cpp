#include "decode.h"

#include "clock.h"
#include "linear.h"
#include "norm.h"

namespace dali {

namespace {

Product product(const PackedLinear& linear, void* out) { return {linear.matrix, linear.packed, linear.bias, out}; }

void project(const std::vector<Product>& products, int columns, const void* x, Dtype dtype, int rows) {
    const Timed timed(Part::dense);
    linear(products, columns, x, dtype, rows);
}

void normalise(const Norm& norm, void* x, Dtype dtype, int64_t values) {
    if (!norm.weight) return;
    const Timed timed(Part::norm);
    rms_norm(x, norm.weight, dtype, values / norm.width, norm.width, norm.epsilon, x);
}

void round_to(Dtype dtype, float* values, int count, void* scratch) {
    if (dtype == Dtype::f32) return;
    write(values, count, dtype, scratch, 0);
    read_row(scratch, dtype, 0, count, values);
}

// x [rows, heads, width], in place: x * cos + rotate_half(x) * sin.
void rotate(void* x, Dtype dtype, int rows, int heads, int width, const void* cos, const void* sin) {
    const int half = width / 2;
    std::vector<float> c(width), s(width), values(width), turned(width), scratch(width);
    for (int row = 0; row < rows; row++) {
        read_row(cos, dtype, row, width, c.data());
        read_row(sin, dtype, row, width, s.data());
        for (int head = 0; head < heads; head++) {
            const size_t at = size_t(row) * heads + head;
            read_row(x, dtype, at, width, values.data());
            for (int i = 0; i < half; i++) {
                turned[i] = -values[i + half] * s[i];
                turned[i + half] = values[i] * s[i + half];
            }
            for (int i = 0; i < width; i++) values[i] *= c[i];
            round_to(dtype, values.data(), width, scratch.data());
            round_to(dtype, turned.data(), width, scratch.data());
            for (int i = 0; i < width; i++) values[i] += turned[i];
            write(values.data(), width, dtype, x, at * width);
        }
    }
}

}  // namespace

Span span(const PackedLinear& linear) { return {linear.packed, linear.matrix.bytes()}; }

void announce(const AttentionModule& module) {
    const Span spans[] = {span(module.query), span(module.key), span(module.value), span(module.out)};
    Pool::instance().announce(spans, 4);
}

void decode(const AttentionModule& module, const void* x, Dtype dtype, int rows, const void* cos, const void* sin,
            const std::vector<DecodingToken>& tokens, void* out) {
    const size_t item = item_bytes(dtype), all = size_t(module.heads) * module.width, kept = size_t(module.kv_heads) * module.width;
    static thread_local std::vector<char> query, key, value, mixed;
    query.resize(rows * all * item);
    key.resize(rows * kept * item);
    value.resize(rows * kept * item);
    mixed.resize(rows * all * item);
    project({product(module.query, query.data()), product(module.key, key.data()), product(module.value, value.data())},
            module.query.columns, x, dtype, rows);
    const Span read_next = span(module.out);
    Pool::instance().announce(&read_next, 1);
    normalise(module.query_norm, query.data(), dtype, rows * all);
    normalise(module.key_norm, key.data(), dtype, rows * kept);
    {
        const Timed timed(Part::attention);
        rotate(query.data(), dtype, rows, module.heads, module.width, cos, sin);
        rotate(key.data(), dtype, rows, module.kv_heads, module.width, cos, sin);
        const int64_t width = module.width;
        attend({dtype, module.heads, module.kv_heads, module.width, module.width, module.scale,
                {query.data(), int64_t(all), width}, {key.data(), int64_t(kept), width}, {value.data(), int64_t(kept), width},
                module.sinks, mixed.data()}, tokens);
    }
    project({product(module.out, out)}, module.out.columns, mixed.data(), dtype, rows);
}

}  // namespace dali
