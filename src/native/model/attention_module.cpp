#include "model/attention_module.h"

#include "threads/spent.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "threads/workspace.h"

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
    Workspace workspace;
    const auto row_of = [&] { return workspace.take<float>(width); };
    float *c = row_of(), *s = row_of(), *values = row_of(), *turned = row_of(), *scratch = row_of();
    for (int row = 0; row < rows; row++) {
        read_row(cos, dtype, row, width, c);
        read_row(sin, dtype, row, width, s);
        for (int head = 0; head < heads; head++) {
            const size_t at = size_t(row) * heads + head;
            read_row(x, dtype, at, width, values);
            for (int i = 0; i < half; i++) {
                turned[i] = -values[i + half] * s[i];
                turned[i + half] = values[i] * s[i + half];
            }
            for (int i = 0; i < width; i++) values[i] *= c[i];
            round_to(dtype, values, width, scratch);
            round_to(dtype, turned, width, scratch);
            for (int i = 0; i < width; i++) values[i] += turned[i];
            write(values, width, dtype, x, at * width);
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
    Workspace workspace;
    char* query = workspace.take<char>(rows * all * item);
    char* key = workspace.take<char>(rows * kept * item);
    char* value = workspace.take<char>(rows * kept * item);
    char* mixed = workspace.take<char>(rows * all * item);
    project({product(module.query, query), product(module.key, key), product(module.value, value)},
            module.query.columns, x, dtype, rows);
    const Span read_next = span(module.out);
    Pool::instance().announce(&read_next, 1);
    normalise(module.query_norm, query, dtype, rows * all);
    normalise(module.key_norm, key, dtype, rows * kept);
    {
        const Timed timed(Part::attention);
        rotate(query, dtype, rows, module.heads, module.width, cos, sin);
        rotate(key, dtype, rows, module.kv_heads, module.width, cos, sin);
        const int64_t width = module.width;
        attend({dtype, module.heads, module.kv_heads, module.width, module.width, module.scale,
                {query, int64_t(all), width}, {key, int64_t(kept), width}, {value, int64_t(kept), width},
                module.sinks, mixed}, tokens);
    }
    project({product(module.out, out)}, module.out.columns, mixed, dtype, rows);
}

}  // namespace dali
