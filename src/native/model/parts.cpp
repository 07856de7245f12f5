#include "model/parts.h"

#include "ops/linear.h"
#include "ops/norm.h"
#include "threads/pieces.h"
#include "threads/spent.h"
#include "threads/workspace.h"

namespace dali {

namespace {

// x [some] from `first` on, at most PIECE, times `by`.
void scale_piece(void* x, int64_t first, int some, float by, Dtype dtype) {
    float values[PIECE];
    read_at(x, dtype, first, some, values);
    for (int i = 0; i < some; i++) values[i] *= by;
    write(values, some, dtype, x, size_t(first));
}

}  // namespace

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
    in_pieces(count, PIECE, [&](int64_t first, int some) {
        float left[PIECE], right[PIECE];
        read_at(a, dtype, first, some, left);
        read_at(b, dtype, first, some, right);
        for (int i = 0; i < some; i++) left[i] += right[i];
        write(left, some, dtype, sum, size_t(first));
    });
}

void scale(void* x, float by, Dtype dtype, int count) {
    in_pieces(count, PIECE, [&](int64_t first, int some) { scale_piece(x, first, some, by, dtype); });
}

void scale_rows(void* x, const float* by, Dtype dtype, int rows, int width) {
    const int64_t pieces = (width + PIECE - 1) / PIECE;  // of a row
    in_pieces(rows * pieces, rows_of_piece(width), [&](int64_t first, int some) {
        for (int64_t piece = first; piece < first + some; piece++) {
            const int64_t row = piece / pieces, column = piece % pieces * PIECE;
            scale_piece(x, row * width + column, int(std::min<int64_t>(PIECE, width - column)), by[row], dtype);
        }
    });
}

}  // namespace dali
