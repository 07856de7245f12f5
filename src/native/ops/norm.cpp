#include "ops/norm.h"

#include <cmath>

#include "kernels/variants.h"
#include "threads/pool.h"
#include "threads/workspace.h"

namespace dali {

void rms_norm(const void* x, const void* weight, Dtype weight_dtype, Dtype dtype, int64_t rows, int width, float epsilon, void* out) {
    const Variant& variant = current_variant();
    Workspace workspace;
    float* weights = workspace.take<float>(width);
    read_row(weight, weight_dtype, 0, width, weights);
    const auto normalise = [&](int row) {
        Workspace workspace;
        float* values = workspace.take<float>(width);
        read_row(x, dtype, row, width, values);
        variant.scale(values, 1.0f / std::sqrt(variant.sum_of_squares(values, width) / float(width) + epsilon), width);
        if (item_bytes(weight_dtype) == item_bytes(dtype) && dtype != Dtype::f32) {  // as the model rounds
            write(values, width, dtype, out, size_t(row) * width);
            read_row(out, dtype, row, width, values);
        }
        variant.multiply(values, weights, width);
        write(values, width, dtype, out, size_t(row) * width);
    };
    if (rows * width < 1 << 16) {  // waking threads costs more
        for (int64_t row = 0; row < rows; row++) normalise(int(row));
        return;
    }
    Phase phase{int(rows)};
    Pool::instance().run([&] { phase.run([&](int row, int) { normalise(row); }); });
}

}  // namespace dali
