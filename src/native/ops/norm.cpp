#include "ops/norm.h"

#include <algorithm>
#include <cmath>

#include "kernels/variants.h"
#include "lanes/floats.h"
#include "threads/pool.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int64_t ALONE = 1 << 16;  // values that take less than waking threads

template <class Work>
void each_row(int64_t rows, int width, const Work& work) {
    if (rows * width < ALONE) {
        for (int64_t row = 0; row < rows; row++) work(int(row));
        return;
    }
    Phase phase{int(rows)};
    Pool::instance().run([&] { phase.run([&](int row, int) { work(row); }); });
}

}  // namespace

void rms_norm(const void* x, const void* weight, Dtype dtype, int64_t rows, int width, float epsilon, void* out) {
    const Variant& variant = current_variant();
    Workspace workspace;
    float* weights = workspace.take<float>(width);
    read_row(weight, dtype, 0, width, weights);
    each_row(rows, width, [&](int row) {
        Workspace workspace;
        float* values = workspace.take<float>(width);
        read_row(x, dtype, row, width, values);
        variant.scale(values, 1.0f / std::sqrt(variant.sum_of_squares(values, width) / float(width) + epsilon), width);
        if (dtype != Dtype::f32) {  // as the model rounds
            write(values, width, dtype, out, size_t(row) * width);
            read_row(out, dtype, row, width, values);
        }
        variant.multiply(values, weights, width);
        write(values, width, dtype, out, size_t(row) * width);
    });
}

void gated_rms_norm(const float* x, const StridedRows& gate, const Values& weight, int64_t rows, int width, int group, float epsilon,
                    float* out) {
    const Variant& variant = current_variant();
    Workspace workspace;
    float* weights = workspace.take<float>(width);
    read_row(weight.at, weight.dtype, 0, width, weights);
    each_row(rows, width, [&](int row) {
        Workspace workspace;
        float* gates = workspace.take<float>(padded(width));
        float* values = out + int64_t(row) * width;
        read_row(gate.row(row), gate.dtype, 0, width, gates);
        std::fill(gates + width, gates + padded(width), 0.0f);
        variant.silu(gates, padded(width));
        if (x != out) std::copy_n(x + int64_t(row) * width, width, values);
        variant.multiply(values, gates, width);
        for (int first = 0; first < width; first += group)
            variant.scale(values + first, 1.0f / std::sqrt(variant.sum_of_squares(values + first, group) / float(group) + epsilon), group);
        variant.multiply(values, weights, width);
    });
}

}  // namespace dali
