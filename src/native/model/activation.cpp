#include "model/activation.h"

#include <algorithm>
#include <cmath>

#include "kernels/variants.h"
#include "threads/pool.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int PIECE = 2048;  // values of an item

}  // namespace

void activate(Activation kind, const void* x, Dtype dtype, int64_t values, void* out) {
    const Variant& variant = current_variant();
    const size_t item_size = item_bytes(dtype);
    const auto some = [&](int item) {
        const int64_t begin = int64_t(item) * PIECE;
        const int count = int(std::min<int64_t>(PIECE, values - begin)), padded = (count + 15) / 16 * 16;
        Workspace workspace;
        float* piece = workspace.take<float>(padded);
        read_row(static_cast<const char*>(x) + begin * item_size, dtype, 0, count, piece);
        std::fill(piece + count, piece + padded, 0.0f);
        variant.activate({kind}, nullptr, piece, piece, padded);
        write(piece, count, dtype, out, size_t(begin));
    };
    const int items = int((values + PIECE - 1) / PIECE);
    if (items <= 8) {  // waking threads costs more
        for (int item = 0; item < items; item++) some(item);
        return;
    }
    Phase phase(items);
    Pool::instance().run([&] { phase.run([&](int item, int) { some(item); }); });
}

void sigmoid(const void* x, Dtype dtype, int values, void* out) {
    Workspace workspace;
    float* row = workspace.take<float>(values);
    read_row(x, dtype, 0, values, row);
    for (int i = 0; i < values; i++) row[i] = 1.0f / (1.0f + std::exp(-row[i]));
    write(row, values, dtype, out, 0);
}

}  // namespace dali
