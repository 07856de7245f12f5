#include "norm.h"

#include <cmath>
#include <vector>

#include "floats.h"
#include "pool.h"

namespace dali {

namespace {

DALI_CLONES float sum_of_squares(const float* x, int width) {
    Floats16 total{};
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        Floats16 a;
        load(x + i, a);
        total += a * a;
    }
    float result = sum(total);
    for (; i < width; i++) result += x[i] * x[i];
    return result;
}

DALI_CLONES void scale(float* x, float by, int width) {
    for (int i = 0; i < width; i++) x[i] *= by;
}

DALI_CLONES void multiply(float* x, const float* by, int width) {
    for (int i = 0; i < width; i++) x[i] *= by[i];
}

}  // namespace

void rms_norm(const void* x, const void* weight, Dtype dtype, int64_t rows, int width, float epsilon, void* out) {
    std::vector<float> weights(width);
    read_row(weight, dtype, 0, width, weights.data());
    const auto normalise = [&](int row) {
        static thread_local std::vector<float> values;
        values.resize(width);
        read_row(x, dtype, row, width, values.data());
        scale(values.data(), 1.0f / std::sqrt(sum_of_squares(values.data(), width) / float(width) + epsilon), width);
        if (dtype != Dtype::f32) {  // as the model rounds
            write(values.data(), width, dtype, out, size_t(row) * width);
            read_row(out, dtype, row, width, values.data());
        }
        multiply(values.data(), weights.data(), width);
        write(values.data(), width, dtype, out, size_t(row) * width);
    };
    if (rows * width < 1 << 16) {  // waking threads costs more
        for (int64_t row = 0; row < rows; row++) normalise(int(row));
        return;
    }
    Phase phase{int(rows)};
    Pool::instance().run([&] { phase.run([&](int row, int) { normalise(row); }); });
}

}  // namespace dali
