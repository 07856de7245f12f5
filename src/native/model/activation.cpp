#include "model/activation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/variants.h"
#include "threads/pieces.h"
#include "threads/workspace.h"

namespace dali {

namespace {

double from_bits(uint64_t bits) {
    double value;
    std::memcpy(&value, &bits, 8);
    return value;
}

uint64_t bits_of(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, 8);
    return bits;
}

// e^x of any float, as source/arithmetic.cuh of the GPU has it, too, with the bits of glibc's expf where it fuses multiply-adds, which it does on every x86 with FMA: the method of ARM's
// optimized routines. e^x = 2^(k/32) 2^(r/32) in doubles: whole k, |r| <= 1/2, a table of 2^(i/32), and the cubic of least relative error.
float exponential(float x) {
    static constexpr uint64_t roots[32] = {  // bits of 2^(i/32)
        0x3FF0000000000000, 0x3FF059B0D3158574, 0x3FF0B5586CF9890F, 0x3FF11301D0125B51, 0x3FF172B83C7D517B,
        0x3FF1D4873168B9AA, 0x3FF2387A6E756238, 0x3FF29E9DF51FDEE1, 0x3FF306FE0A31B715, 0x3FF371A7373AA9CB,
        0x3FF3DEA64C123422, 0x3FF44E086061892D, 0x3FF4BFDAD5362A27, 0x3FF5342B569D4F82, 0x3FF5AB07DD485429,
        0x3FF6247EB03A5585, 0x3FF6A09E667F3BCD, 0x3FF71F75E8EC5F74, 0x3FF7A11473EB0187, 0x3FF82589994CCE13,
        0x3FF8ACE5422AA0DB, 0x3FF93737B0CDC5E5, 0x3FF9C49182A3F090, 0x3FFA5503B23E255D, 0x3FFAE89F995AD3AD,
        0x3FFB7F76F2FB5E47, 0x3FFC199BDD85529C, 0x3FFCB720DCEF9069, 0x3FFD5818DCFBA487, 0x3FFDFC97337B9B5F,
        0x3FFEA4AFA2A490DA, 0x3FFF50765B6E4540};
    if (std::isnan(x) || x > 88.72283f) return std::isnan(x) ? x : std::numeric_limits<float>::infinity();
    if (x < -104.0f) return 0.0f;
    constexpr double scale = 0x1.71547652b82fep+5, whole = 0x1.8p52;  // 32 / log 2; to add and take away rounds to a whole number
    const double shifted = std::fma(scale, double(x), whole);
    const uint64_t k = bits_of(shifted);
    const double r = std::fma(scale, double(x), -(shifted - whole));
    const double upper = std::fma(0x1.c6af84b915487p-20, r, 0x1.ebfce50fac500p-13), lower = std::fma(0x1.62e42ff0c52d6p-6, r, 1.0);
    const double power = from_bits(roots[k % 32] + ((k - k % 32) << 47));
    return float(std::fma(upper, r * r, lower) * power);
}

}  // namespace

void activate(Activation kind, const void* x, Dtype dtype, int64_t values, void* out) {
    const Variant& variant = current_variant();
    in_pieces(values, PIECE, [&](int64_t begin, int count) {
        const int padded = (count + 15) / 16 * 16;
        Workspace workspace;
        float* piece = workspace.take<float>(padded);
        read_at(x, dtype, begin, count, piece);
        std::fill(piece + count, piece + padded, 0.0f);
        variant.activate({kind}, nullptr, piece, piece, padded);
        write(piece, count, dtype, out, size_t(begin));
    });
}

void sigmoid(const void* x, Dtype dtype, int values, void* out) {
    Workspace workspace;
    float* row = workspace.take<float>(values);
    read_row(x, dtype, 0, values, row);
    for (int i = 0; i < values; i++) row[i] = 1.0f / (1.0f + exponential(-row[i]));
    write(row, values, dtype, out, 0);
}

}  // namespace dali
