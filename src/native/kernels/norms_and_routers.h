// Kernels over rows of floats: norms', routers', and what gates; and how fast rows are read.
#pragma once

#include "kernels/variant.h"
#include "lanes/bytes.h"
#include "lanes/floats.h"

namespace dali {

template <class V>
struct RowKernels {
    static float sum_of_squares(const float* x, int width) {
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

    static void scale(float* x, float by, int width) {
        for (int i = 0; i < width; i++) x[i] *= by;
    }

    static void multiply(float* x, const float* by, int width) {
        for (int i = 0; i < width; i++) x[i] *= by[i];
    }

    // Where exp() begins to overflow; NaN stays.
    static DALI_INLINE void limit(Floats16& x) {
        constexpr float most = 88.0f;
        x = x > most ? Floats16{} + most : x;
    }

    static void exponentials(float* x, int width) {
        for (int c = 0; c < width; c += LANES) {
            Floats16 value;
            load(x + c, value);
            limit(value);
            exp(value);
            store(value, x + c);
        }
    }

    template <bool times_itself>
    static void sigmoids(float* x, int width) {
        for (int c = 0; c < width; c += LANES) {
            Floats16 value, power, one = Floats16{} + 1.0f;
            load(x + c, value);
            power = -value;
            limit(power);
            exp(power);
            store((times_itself ? value : one) / (power + 1.0f), x + c);
        }
    }

    template <class T>
    static void products(const T* matrix, const float* x, int rows, int width, float* out) {
        for (int row = 0; row < rows; row++) out[row] = dot(matrix + size_t(row) * width, x, width);
    }

    static int read(const char* from, size_t bytes) {
        constexpr int AHEAD = 4096;  // bytes the prefetch runs ahead
        Bytes16 folded[4] = {};
        for (size_t at = 0; at + 64 <= bytes; at += 64) {
            __builtin_prefetch(from + at + AHEAD, 0, 2);
            for (int i = 0; i < 4; i++) folded[i] ^= bytes_at(reinterpret_cast<const uint8_t*>(from) + at + 16 * i);
        }
        const Bytes16 all = folded[0] ^ folded[1] ^ folded[2] ^ folded[3];
        int result = 0;
        for (int i = 0; i < 16; i++) result ^= all[i];
        return result;
    }

    static void put_into(Variant& variant) {
        variant.sum_of_squares = sum_of_squares;
        variant.scale = scale;
        variant.multiply = multiply;
        variant.exponentials = exponentials;
        variant.sigmoids = sigmoids<false>;
        variant.silu = sigmoids<true>;
        variant.products_f32 = products<float>;
        variant.products_bf16 = products<uint16_t>;
        variant.read = read;
    }
};

}  // namespace dali
