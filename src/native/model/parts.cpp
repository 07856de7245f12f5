#include "model/parts.h"

#include "ops/linear.h"
#include "ops/norm.h"
#include "threads/spent.h"
#include "threads/workspace.h"

namespace dali {

Span span(const PackedLinear& linear) { return {linear.packed, linear.matrix.bytes()}; }

void project(const std::vector<Projection>& projections, const void* x, Dtype dtype, int rows) {
    const Timed timed(Part::dense);
    std::vector<Product> products;
    for (const auto& [linear, out] : projections) products.push_back({linear.matrix, linear.packed, linear.bias, out});
    linear(products, projections.front().linear.columns, x, dtype, rows);
}

void normalise(const Norm& norm, const void* x, Dtype dtype, int64_t values, void* out) {
    const Timed timed(Part::norm);
    rms_norm(x, norm.weight, norm.dtype, dtype, values / norm.width, norm.width, norm.epsilon, out);
}

void round_to(Dtype dtype, float* values, int count) {
    if (dtype == Dtype::f32) return;
    Workspace workspace;
    void* rounded = workspace.take<char>(size_t(count) * item_bytes(dtype));
    write(values, count, dtype, rounded, 0);
    read_row(rounded, dtype, 0, count, values);
}

void add(const void* a, const void* b, Dtype dtype, int count, void* sum) {
    Workspace workspace;
    float* left = workspace.take<float>(count);
    float* right = workspace.take<float>(count);
    read_row(a, dtype, 0, count, left);
    read_row(b, dtype, 0, count, right);
    for (int i = 0; i < count; i++) left[i] += right[i];
    write(left, count, dtype, sum, 0);
}

void scale(void* x, float by, Dtype dtype, int count) {
    Workspace workspace;
    float* values = workspace.take<float>(count);
    read_row(x, dtype, 0, count, values);
    for (int i = 0; i < count; i++) values[i] *= by;
    write(values, count, dtype, x, 0);
}

}  // namespace dali
